"""Stage 1, act: T steps of B environments in one scan, the teacher's opinion on them, and both at the true successors.

The scan body is thin: the student's forward pass, an action, the environments' step. The teacher is in it only if it acts (or is recurrent
and its next value is read); otherwise it sees the stacked observations once. Where the time limit cut an episode, the
observation that was cut off goes into a slot: two cuts of one environment are at least `cut_steps` (or `max_steps`) apart, so
K = ceil(T / cut_steps) slots hold them all, and one forward pass on [K + 1, B] after the scan gives every missing successor.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.base import Actors, Batch, Behavior, Context, Env, Outputs, Policy
from jaxkd.cpu import unrolled


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


class _Slots(NamedTuple):
    """What was cut off by the time limit."""

    used: jax.Array  # int32 [B]
    obs: Any  # [K, B, ...]
    carry: Any  # [K, B, ...]
    teacher_carry: Any  # [K, B, ...]


def start(rollout: Rollout, key: jax.Array) -> Actors:
    """Actors at the beginning of an episode each; leaves [B, ...]."""
    env = rollout.env
    env_state, obs = env.reset(key)
    zeros = jnp.zeros(env.num_envs)
    return Actors(
        env_state=env_state,
        obs=obs,
        reset=jnp.ones(env.num_envs),
        carry=rollout.student.initial_carry(env.num_envs),
        teacher_carry=rollout.teacher.initial_carry(env.num_envs) if rollout.teacher else (),
        episode_return=zeros,
        episode_step=jnp.zeros(env.num_envs, jnp.int32),
        last_return=jnp.full(env.num_envs, jnp.nan, jnp.float32),
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
        actors after it, the batch [T, B] (fields that nobody needs are ()), the student's Outputs [B] at the last observation
        (() unless its successors are needed).
    """
    student, teacher, behavior = rollout.student, rollout.teacher, rollout.behavior
    inside = teacher is not None and (
        behavior.needs_teacher
        or (needs.teacher_next and bool(jax.tree.leaves(actors.teacher_carry)))
    )
    cuts = needs.acting_next or needs.teacher_next

    def body(state, key):
        before, slots = state
        carry, ours = student.step(params, before.carry, before.obs, before.reset)
        teacher_carry, theirs = before.teacher_carry, ()
        if inside and teacher is not None:
            teacher_carry, theirs = teacher.step(
                teacher_params, before.teacher_carry, before.obs, before.reset
            )
        key_act, key_env = key
        action = behavior.act(
            key_act, ours, theirs, context._replace(episode_step=before.episode_step)
        )
        env_state, step = rollout.env.step(key_env, before.env_state, action)
        after = _advance(
            before._replace(env_state=env_state, carry=carry, teacher_carry=teacher_carry), step
        )
        if cuts:
            slots = _cut(slots, step.truncated, step.next_obs, carry, teacher_carry)
        row = dict(
            obs=before.obs,
            action=action,
            reward=step.reward,
            terminated=step.terminated,
            truncated=step.truncated,
        )
        row |= dict(reset=before.reset, next_obs=step.next_obs if needs.next_obs else ())
        row |= dict(carry=before.carry if rollout.sequence_length < rollout.unroll_length else ())
        return (after, slots), (row, ours if needs.acting else (), theirs if needs.teacher else ())

    keys = jax.random.split(unrolled(context.key), (rollout.unroll_length, 2))
    slots: Any = _slots(rollout, actors) if cuts else ()
    first = actors
    (actors, slots), (rows, acting, theirs) = jax.lax.scan(body, (actors, slots), keys)
    if teacher is not None and not inside and (needs.teacher or needs.teacher_next):
        teacher_carry, theirs = teacher.unroll(
            teacher_params, first.teacher_carry, rows["obs"], rows["reset"]
        )
        actors = actors._replace(teacher_carry=teacher_carry)
    whole = rollout.sequence_length == rollout.unroll_length
    rows["carry"] = jax.tree.map(
        lambda x: x[None] if whole else x[:: rollout.sequence_length],
        first.carry if whole else rows["carry"],
    )
    batch = Batch(**rows, acting=acting, teacher=theirs)
    last: Any = ()
    if needs.acting_next:
        last, following = _successors(
            student, params, acting, slots, slots.carry, actors, actors.carry, batch.truncated
        )
        batch = batch._replace(acting_next=following)
    if teacher is not None and needs.teacher_next:
        args = slots, slots.teacher_carry, actors, actors.teacher_carry
        batch = batch._replace(
            teacher_next=_successors(teacher, teacher_params, theirs, *args, batch.truncated)[1]
        )
    return actors, batch, last


def _advance(actors: Actors, step: Any) -> Actors:
    """Bookkeeping of one step."""
    done = step.terminated + step.truncated
    episode_return = actors.episode_return + step.reward
    return actors._replace(
        obs=step.obs,
        reset=done,
        episode_return=episode_return * (1 - done),
        episode_step=(actors.episode_step + 1) * (1 - done).astype(jnp.int32),
        last_return=jnp.where(done > 0, episode_return, actors.last_return),
    )


def _slots(rollout: Rollout, actors: Actors) -> _Slots:
    length, env = rollout.unroll_length, rollout.env
    number = -(-length // (env.cut_steps or env.max_steps or 1)) if env.truncates else 0
    empty = [
        jax.tree.map(lambda x: jnp.zeros((number, *x.shape), x.dtype), x)
        for x in (actors.obs, actors.carry, actors.teacher_carry)
    ]
    return _Slots(jnp.zeros(env.num_envs, jnp.int32), *empty)


def _cut(slots: _Slots, truncated: jax.Array, obs: Any, carry: Any, teacher_carry: Any) -> _Slots:
    """Writes what was cut off in this step into the next free slot of its environment."""
    number = next((x.shape[0] for x in jax.tree.leaves(slots.obs)), 0)
    hit = (truncated > 0)[None] & (slots.used[None] == jnp.arange(number)[:, None])  # [K, B]

    def write(slot, x):
        return jnp.where(hit.reshape(hit.shape + (1,) * (x.ndim - 1)), x[None], slot)

    written = jax.tree.map(write, slots[1:], (obs, carry, teacher_carry))
    return _Slots(slots.used + truncated.astype(jnp.int32), *written)


def _successors(
    policy, params, rows, slots, cut_carry, actors, last_carry, truncated
) -> tuple[Outputs, Outputs]:
    """The policy's Outputs [B] at the last observation, and [T, B] at every true successor (meaningless where terminated)."""
    number = next(x.shape[0] for x in jax.tree.leaves(slots.obs))
    num_envs = truncated.shape[1]

    def both(cut, last):
        return jax.tree.map(
            lambda a, b: jnp.concatenate([a, b[None]]).reshape(
                ((number + 1) * num_envs, *b.shape[1:])
            ),
            cut,
            last,
        )

    reset = both(jnp.zeros((number, num_envs)), actors.reset)
    out = policy.step(params, both(cut_carry, last_carry), both(slots.obs, actors.obs), reset)[1]
    out = jax.tree.map(lambda x: x.reshape((number + 1, num_envs, *x.shape[1:])), out)
    which = jnp.clip(
        jnp.cumsum(truncated, axis=0).astype(jnp.int32) - 1, 0, max(number - 1, 0)
    )  # [T, B]

    def merge(row, x):
        following = jnp.concatenate([row[1:], x[-1:]])
        if number == 0:
            return following
        shape = truncated.shape + (1,) * (row.ndim - 2)
        cut = x[:1] if number == 1 else jnp.take_along_axis(x[:-1], which.reshape(shape), axis=0)
        return jnp.where(truncated.reshape(shape) > 0, cut, following)

    return jax.tree.map(lambda x: x[-1], out), jax.tree.map(merge, rows, out)
