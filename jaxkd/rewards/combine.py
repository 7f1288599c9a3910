"""Combinators: what is added to a reward, and how it is scaled, clipped and replaced; [T, B]."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import RewardTransform, UsageError
from jaxkd.description import described
from jaxkd.losses.combine import at


@described
def add(
    fn: Callable, coef: float | jax.Array | Callable = 1.0, *, stream: str = ""
) -> RewardTransform:
    """r + coef fn(batch, context): a bonus without state.

    Args:
        fn: (batch [T, B], context) -> [T, B]; the rollout records what it reads.
        coef: a number or a schedule `update -> coef`.
        stream: the reward it is added to; a new name starts a stream of its own at 0.

    >>> alive = add(lambda batch, context: 1 - batch.terminated, 0.1)
    """
    check.function("fn", fn, "(batch, context) -> [T, B]")
    check.number("coef", coef)

    def update(reward, state, batch, context):
        chex.assert_rank(reward, 2)
        bonus = fn(batch, context)
        chex.assert_equal_shape([reward, bonus])
        return reward + at(coef, context) * bonus, state

    return RewardTransform(_no_state, update, stream)


@described
def replace(fn: Callable, *, stream: str = "") -> RewardTransform:
    """fn(batch, context) [T, B] instead of the reward so far.

    >>> imitate = replace(lambda batch, context: batch.teacher.policy.log_prob(batch.action))
    """
    check.function("fn", fn, "(batch, context) -> [T, B]")

    def update(reward, state, batch, context):
        chex.assert_rank(reward, 2)
        instead = fn(batch, context)
        chex.assert_equal_shape([reward, instead])
        return instead, state

    return RewardTransform(_no_state, update, stream)


@described
def scale(coef: float | jax.Array | Callable, *, stream: str = "") -> RewardTransform:
    """coef r; `scale(0.0)` first leaves only what later transforms pay.

    Args:
        coef: a number or a schedule `update -> coef`.

    >>> scale(0.1).stream
    ''
    """
    check.number("coef", coef)

    def update(reward, state, batch, context):
        chex.assert_rank(reward, 2)
        return at(coef, context) * reward, state

    return RewardTransform(_no_state, update, stream)


@described
def clip(low: float | jax.Array, high: float | jax.Array, *, stream: str = "") -> RewardTransform:
    """r within [low, high]: -1 and 1 for Atari (Mnih et al. 2015), -10 and 10 behind `normalise`.

    >>> clip(-1.0, 1.0).stream
    ''
    """
    if all(isinstance(x, int | float) for x in (low, high)) and not low < high:
        raise UsageError(f"clip needs low < high, got {low:g} and {high:g}.")

    def update(reward, state, batch, context):
        chex.assert_rank(reward, 2)
        return jnp.clip(reward, low, high), state

    return RewardTransform(_no_state, update, stream)


def _no_state(key, spec):
    return ()
