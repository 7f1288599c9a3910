"""Novelty by counting: exact, for few states."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import RewardTransform
from jaxkd.description import described
from jaxkd.losses.combine import at


@described
def count(
    index: Callable,
    size: int,
    coef: float | jax.Array | Callable = 1.0,
    *,
    terminal: bool = True,
    stream: str = "",
) -> RewardTransform:
    """r + coef / sqrt(n(s')), n the visits so far (Strehl & Littman 2008): exact, for few states.

    The visits of this rollout are included. Rows of weight 0 are no visits and pay nothing.

    Args:
        index: of ONE observation, the number of its state, int32 [] in [0, size).
        size: number of states; the table is float32 [size].
        coef, terminal, stream: as in `rnd`.

    >>> deep_sea = count(lambda obs: jnp.argmax(obs), 14 * 14, terminal=False)
    """
    check.number("coef", coef)
    check.function("index", index, "(observation) -> int32 []")
    check.count("size", size)

    def update(reward, state, batch, context):
        chex.assert_rank(reward, 2)
        where = jax.vmap(jax.vmap(index))(batch.next_obs)
        everywhere = isinstance(batch.weight, tuple)
        # JAX drops what is added past the end: a row that does not count is no visit.
        visited = where if everywhere else jnp.where(batch.weight > 0, where, size)
        visits = state.at[visited].add(1.0)
        bonus = jax.lax.rsqrt(visits[where])
        if not terminal:
            bonus = jnp.where(batch.terminated > 0, 0.0, bonus)
        if not everywhere:
            bonus = jnp.where(batch.weight > 0, bonus, 0.0)
        return reward + at(coef, context) * bonus, visits

    return RewardTransform(lambda key, spec: jnp.zeros(size, jnp.float32), update, stream)
