"""What policies say at the true successor of every row of a rollout.

Legend of shapes: `T` time, `B` environments, `K` slots of an environment.

Nearly always the next row says it. Two kinds of rows are left: the last one, on whose successor
nobody has acted yet, and those where a time limit cut the episode. For these there are two rules,
both exact:

- Slots. Where two cuts of one environment are at least `cut_steps` apart, K = ceil(T / cut_steps)
  slots hold every observation (and carry) that was cut off. One forward pass on [K + 1, B] after
  the scan answers for all of them and for the last row.
- At once. Where nothing is known about the cuts, or carries are too large to be copied, the
  policies answer in the very step in which an episode is cut.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.base import Actors, Batch, Env, Outputs, Policy, TimeStep
from jaxkd.cpu import where_any

_LARGE = 2**14  # bytes of one environment's carry: every slot is rewritten in every step


class Speaker(NamedTuple):
    """A policy whose Outputs at true successors somebody reads."""

    policy: Policy
    params: Any
    carry: str  # the field of `Actors` that holds its carry
    rows: str  # the field of `Batch` that holds what it says at every row


class Rule(NamedTuple):
    """How cut-off successors are answered; `cuts` is what the rule carries through the scan."""

    cuts: Any  # at the beginning
    record: Callable  # (cuts, step: TimeStep, after: Actors) -> (cuts, what this step leaves)
    answer: Callable  # (speaker, cuts, left [T], actors, batch) -> ([B] at the last, [T, B] at all)


def remembers(policy: Policy, params: Any, carry: Any, actors: Actors) -> bool:
    """Whether a step changes the carry; that of `networks.per_env` only says whose a row is."""

    def after(carry):
        return policy.step(params, carry, actors.obs, actors.reset)[0]

    traced = jax.make_jaxpr(after)(carry).jaxpr
    return traced.invars != traced.outvars


def rule(env: Env, unroll_length: int, speakers: Sequence[Speaker], actors: Actors) -> Rule:
    """The rule that holds for an environment and the carries of these speakers."""
    carries = [getattr(actors, speaker.carry) for speaker in speakers]
    sizes = [x[0].size * x.dtype.itemsize for x in jax.tree.leaves(carries)]
    if not speakers:
        return Rule((), lambda cuts, step, after: ((), ()), _nobody_asks)
    if not env.truncates:
        return _slots(0, speakers, actors)
    if env.cut_steps is None or sum(sizes) > _LARGE:
        return Rule((), _answer_at_once(speakers), _from_rows)
    return _slots(-(-unroll_length // env.cut_steps), speakers, actors)


def _nobody_asks(*_: Any) -> Any:
    raise AssertionError("no speaker, no answer")


# --- slots ------------------------------------------------------------------------------------


class _Slots(NamedTuple):
    """What was cut off so far."""

    used: jax.Array  # int32 [B]
    obs: Any  # [K, B, ...]
    carries: dict[str, Any]  # by field of `Actors`, [K, B, ...]


def _slots(number: int, speakers: Sequence[Speaker], actors: Actors) -> Rule:
    def zeros(tree):
        return jax.tree.map(lambda x: jnp.zeros((number, *x.shape), x.dtype), tree)

    carries = {speaker.carry: getattr(actors, speaker.carry) for speaker in speakers}
    free = jnp.zeros_like(actors.episode_step)
    return Rule(_Slots(free, zeros(actors.obs), zeros(carries)), _fill, _from_slots)


def _fill(slots: _Slots, step: TimeStep, after: Actors) -> tuple[_Slots, Any]:
    """What was cut off in this step goes into the next free slot of its environment."""
    number = _number(slots)
    is_next = slots.used[None] == jnp.arange(number)[:, None]  # [K, B]
    here = (step.truncated > 0)[None] & is_next

    def write(slot, x):
        return jnp.where(here.reshape(here.shape + (1,) * (x.ndim - 1)), x[None], slot)

    carries = {field: getattr(after, field) for field in slots.carries}
    held = jax.tree.map(write, (slots.obs, slots.carries), (step.next_obs, carries))
    return _Slots(slots.used + step.truncated.astype(jnp.int32), *held), ()


def _from_slots(
    speaker: Speaker, slots: _Slots, left: Any, actors: Actors, batch: Batch
) -> tuple[Outputs, Outputs]:
    number, num_envs = _number(slots), batch.truncated.shape[1]
    join = lambda held, last: jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), held, last)
    obs = join(slots.obs, actors.obs)  # [K + 1, B, ...]
    reset = join(jnp.zeros((number, num_envs), jnp.float32), actors.reset)
    carry = getattr(actors, speaker.carry)
    if jax.tree.leaves(carry) and not remembers(speaker.policy, speaker.params, carry, actors):
        # Rows of one environment are as good as a sequence: one copy of what is its own.
        out = speaker.policy.unroll(speaker.params, carry, obs, reset)[1]
    else:
        carries = join(slots.carries[speaker.carry], carry)
        flat = jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), (carries, obs, reset))
        out = speaker.policy.step(speaker.params, *flat)[1]
        out = jax.tree.map(lambda x: x.reshape((number + 1, num_envs, *x.shape[1:])), out)
    latest = jnp.cumsum(batch.truncated, axis=0).astype(jnp.int32) - 1  # [T, B], the slot of a cut
    latest = jnp.clip(latest, 0, max(number - 1, 0))

    def merge(row, answers):
        following = jnp.concatenate([row[1:], answers[-1:]])
        if number == 0:
            return following
        if number == 1:
            cut = answers[:1]
        else:
            cut = jnp.take_along_axis(answers[:-1], _like(latest, row), axis=0)
        return jnp.where(_like(batch.truncated, row) > 0, cut, following)

    rows = getattr(batch, speaker.rows)
    return jax.tree.map(lambda x: x[-1], out), jax.tree.map(merge, rows, out)


def _number(slots: _Slots) -> int:
    return next(x.shape[0] for x in jax.tree.leaves(slots.obs))


# --- at once ----------------------------------------------------------------------------------


def _answer_at_once(speakers: Sequence[Speaker]) -> Callable:
    """-> record: each speaker's Outputs [B] at `step.next_obs`, if any episode was cut."""

    def record(cuts, step, after):
        def said():
            still = jnp.zeros_like(step.truncated)  # the episode goes on, as far as they know
            return {
                speaker.rows: speaker.policy.step(
                    speaker.params, getattr(after, speaker.carry), step.next_obs, still
                )[1]
                for speaker in speakers
            }

        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(said))
        return (), where_any(step.truncated > 0, said, nothing)

    return record


def _from_rows(
    speaker: Speaker, cuts: Any, left: dict[str, Outputs], actors: Actors, batch: Batch
) -> tuple[Outputs, Outputs]:
    carry = getattr(actors, speaker.carry)
    last = speaker.policy.step(speaker.params, carry, actors.obs, actors.reset)[1]

    def merge(row, cut, final):
        following = jnp.concatenate([row[1:], final[None]])
        return jnp.where(_like(batch.truncated, row) > 0, cut, following)

    rows = getattr(batch, speaker.rows)
    return last, jax.tree.map(merge, rows, left[speaker.rows], last)


def _like(x: jax.Array, row: jax.Array) -> jax.Array:
    """x [T, B] with as many axes as `row` [T, B, ...]."""
    return x.reshape(x.shape + (1,) * (row.ndim - 2))
