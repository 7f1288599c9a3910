"""Rewards at a known scale."""

import chex
import jax
import jax.numpy as jnp

from jaxkd import check, moments
from jaxkd.base import RewardTransform
from jaxkd.description import described


@described
def normalise(
    gamma: float | jax.Array = 0.99,
    *,
    episodic: bool = True,
    enlarge: bool = True,
    stream: str = "",
) -> RewardTransform:
    """The reward divided by the running standard deviation of its discounted return.

    R_t = gamma R_{t-1} + r_t. Never mean-centred: that would change what is optimal. R runs forward
    in time and is carried from rollout to rollout. While R is constant (no reward yet, or the same
    one every time) the reward stays as it is. A rare reward is large in these units, up to the root
    of the number of steps seen: chain `clip(-10.0, 10.0)` behind it where that hurts
    (Stable-Baselines3 does).

    A row of weight 0 earns for R, and is divided, like any other; only the deviation is that of the
    rows that count.

    Args:
        gamma: of R, in [0, 1].
        episodic: R starts at 0 with every episode; False lets it run through resets, as random
            network distillation does.
        enlarge: False only makes rewards smaller. Where nothing but small costs has been seen yet,
            they stay small: enlarged, they teach not to look for what is worth them (DeepSea).
        stream: the reward it is chained on.

    >>> normalise(0.99).stream
    ''
    """
    check.number("gamma", gamma, low=0, high=1)

    def init(key, spec):
        return {
            "actors": jnp.zeros(spec[1].reward.shape[1:], jnp.float32),
            "moments": moments.empty(jnp.zeros(())),
        }

    def update(reward, state, batch, context):
        chex.assert_rank(reward, 2)
        if episodic:
            decay = gamma * (1 - batch.terminated) * (1 - batch.truncated)
        else:
            decay = jnp.full_like(reward, gamma)

        def body(before, row):
            earned, keep = row
            now = before + earned
            return keep * now, now

        last, running = jax.lax.scan(body, state["actors"], (reward, decay), unroll=8)
        known = moments.update(state["moments"], running, batch.weight)
        # Beyond the rounding of float32.
        varies = known.var > 1e-12 * (known.var + jnp.square(known.mean))
        scale = jnp.where(varies, jax.lax.rsqrt(known.var + 1e-8), 1.0)
        if not enlarge:
            scale = jnp.minimum(scale, 1.0)
        return reward * scale, {"actors": last, "moments": known}

    return RewardTransform(init, update, stream)
