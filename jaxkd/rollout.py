"""Stage 1, act: T steps of B environments in one scan, and the teacher's opinion on them.

Legend of shapes: `T` time, `L` sequence length, `B` environments.

The scan body is thin: the student's forward pass, an action, the environments' step. The teacher is
in it only if it acts, or if its carry changes and its next value is read; otherwise it sees the
stacked observations once. What both say at true successors is the matter of `successors.py`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd import successors
from jaxkd.base import Actors, Batch, Behavior, Context, Env, Outputs, Policy, TimeStep
from jaxkd.cpu import unrolled
from jaxkd.keys import scan


class Needs(NamedTuple):
    """What somebody reads of a rollout, beyond observations and actions."""

    acting: bool = True
    next_obs: bool = True
    acting_next: bool = True
    teacher: bool = True
    teacher_next: bool = True


class Rollout(NamedTuple):
    """The static arguments of stage 1."""

    env: Env
    student: Policy
    teacher: Policy | None
    behavior: Behavior
    unroll_length: int
    sequence_length: int


def start(rollout: Rollout, key: jax.Array) -> Actors:
    """Actors at the beginning of an episode each; leaves [B, ...]."""
    env = rollout.env
    env_state, obs = env.reset(key)
    return Actors(
        env_state=env_state,
        obs=obs,
        reset=jnp.ones(env.num_envs, jnp.float32),
        carry=rollout.student.initial_carry(env.num_envs),
        teacher_carry=rollout.teacher.initial_carry(env.num_envs) if rollout.teacher else (),
        episode_return=jnp.zeros(env.num_envs, jnp.float32),
        episode_step=jnp.zeros(env.num_envs, jnp.int32),
        last_return=jnp.full(env.num_envs, -jnp.inf, jnp.float32),
    )


def act(
    rollout: Rollout,
    needs: Needs,
    params: Any,
    teacher_params: Any,
    actors: Actors,
    context: Context,
) -> tuple[Actors, Batch, Outputs]:
    """One rollout.

    Returns:
        actors after it, the batch [T, B] (fields that nobody needs are ()), and the student's
        Outputs [B] at the last observation (() unless its successors are needed).
    """
    env, student, teacher = rollout.env, rollout.student, rollout.teacher
    walks_along = teacher is not None and _walks_along(rollout, needs, teacher_params, actors)
    speakers = _speakers(rollout, needs, params, teacher_params)
    rule = successors.rule(env, rollout.unroll_length, speakers, actors)

    def body(state, keys):
        before, cuts = state
        key_act, key_env = keys
        seen = before.obs, before.reset
        carry, ours = student.step(params, before.carry, *seen)
        teacher_carry, theirs = before.teacher_carry, ()
        if teacher is not None and walks_along:
            teacher_carry, theirs = teacher.step(teacher_params, teacher_carry, *seen)
        acting = context._replace(episode_step=before.episode_step)
        action = rollout.behavior.act(key_act, ours, theirs, acting)
        env_state, step = env.step(key_env, before.env_state, action)
        step = _in_float32(step)
        after = before._replace(env_state=env_state, carry=carry, teacher_carry=teacher_carry)
        after = _advance(after, step)
        cuts, left = rule.record(cuts, step, after)
        return (after, cuts), (_row(needs, before, action, step, ours, theirs), left)

    keys = jax.random.split(unrolled(context.key), (rollout.unroll_length, 2))
    first = actors
    (actors, cuts), (batch, left), begins = _scan(rollout, body, (actors, rule.cuts), keys)
    batch = batch._replace(carry=begins)
    if (needs.teacher or needs.teacher_next) and not walks_along:
        actors, batch = _listen(rollout, teacher_params, first, actors, batch)
    last: Any = ()
    for speaker in speakers:
        at_last, following = rule.answer(speaker, cuts, left, actors, batch)
        batch = batch._replace(**{f"{speaker.rows}_next": following})
        last = at_last if speaker.rows == "acting" else last
    return actors, batch, last


def _listen(
    rollout: Rollout, teacher_params: Any, first: Actors, actors: Actors, batch: Batch
) -> tuple[Actors, Batch]:
    """What the teacher says of all rows at once, from its carry before the first of them."""
    if rollout.teacher is None:
        return actors, batch
    carry, said = rollout.teacher.unroll(
        teacher_params, first.teacher_carry, batch.obs, batch.reset
    )
    return actors._replace(teacher_carry=carry), batch._replace(teacher=said)


def _walks_along(rollout: Rollout, needs: Needs, teacher_params: Any, actors: Actors) -> bool:
    """Whether the teacher is in the scan."""
    if rollout.behavior.needs_teacher:
        return True
    teacher: Any = rollout.teacher
    carry = actors.teacher_carry
    return needs.teacher_next and successors.remembers(teacher, teacher_params, carry, actors)


def _speakers(
    rollout: Rollout, needs: Needs, params: Any, teacher_params: Any
) -> list[successors.Speaker]:
    found = []
    if needs.acting_next:
        found.append(successors.Speaker(rollout.student, params, "carry", "acting"))
    if rollout.teacher is not None and needs.teacher_next:
        theirs = rollout.teacher, teacher_params, "teacher_carry", "teacher"
        found.append(successors.Speaker(*theirs))
    return found


def _row(
    needs: Needs, before: Actors, action: Any, step: TimeStep, ours: Outputs, theirs: Any
) -> Batch:
    """One row [B, ...] of the batch."""
    return Batch(
        obs=before.obs,
        next_obs=step.next_obs if needs.next_obs else (),
        action=action,
        reward=step.reward,
        terminated=step.terminated,
        truncated=step.truncated,
        reset=before.reset,
        carry=(),
        acting=ours if needs.acting else (),
        teacher=theirs if needs.teacher else (),
        weight=step.weight,
    )


def _scan(rollout: Rollout, body: Callable, state: Any, keys: jax.Array) -> tuple[Any, Any, Any]:
    """`body` over T rows, and the carries [T / L, B, ...] at the beginnings of sequences.

    Blocks of L steps keep no carry but the one they begin with: a carry may be a large cache.
    """
    length = rollout.sequence_length
    recurrent = bool(jax.tree.leaves(state[0].carry))
    if length == rollout.unroll_length or not recurrent:
        begins = jax.tree.map(lambda x: x[None], state[0].carry)
        state, rows = scan(body, state, keys)
        return state, rows, begins

    def block(state, keys):
        began = state[0].carry
        state, rows = scan(body, state, keys)
        return state, (rows, began)

    blocks = keys.reshape((-1, length, *keys.shape[1:]))
    state, (rows, begins) = scan(block, state, blocks)
    return state, jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), rows), begins


def _in_float32(step: TimeStep) -> TimeStep:
    """An Env by hand may give bools, or numbers of 64 bits."""
    fields = ("reward", "terminated", "truncated")
    return step._replace(**{name: getattr(step, name).astype(jnp.float32) for name in fields})


def _advance(actors: Actors, step: TimeStep) -> Actors:
    """Bookkeeping of one step."""
    done = step.terminated + step.truncated
    episode_return = actors.episode_return + step.reward
    # inf says that an episode's return was no number, which is told apart from "none yet"
    shown = jnp.where(jnp.isfinite(episode_return), episode_return, jnp.inf)
    return actors._replace(
        obs=step.obs,
        reset=done,
        episode_return=jnp.where(done > 0, 0.0, episode_return),  # 0 times nan would stay nan
        episode_step=(actors.episode_step + 1) * (1 - done).astype(jnp.int32),
        last_return=jnp.where(done > 0, shown, actors.last_return),
    )
