"""How rewards become advantages and value targets: factories of `Returns`, and the recursions for one trajectory."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import Returns

_UNROLL = 8  # of the backward recursion: a few scalar operations a step


def discounted_sum(x: jax.Array, decay: jax.Array) -> jax.Array:
    """y[t] = x[t] + decay[t] * y[t+1], y[T] = 0, for one trajectory [T].

    >>> discounted_sum(jnp.array([1.0, 1.0]), jnp.array([0.5, 0.5]))
    Array([1.5, 1. ], dtype=float32)
    """
    chex.assert_rank([x, decay], 1)

    def body(y, row):
        y = row[0] + row[1] * y
        return y, y

    return jax.lax.scan(body, jnp.zeros_like(x[0]), (x, decay), reverse=True, unroll=_UNROLL)[1]


def gae(gamma: float | jax.Array = 0.99, lambda_: float | jax.Array = 0.95, *, episodic: bool = True) -> Returns:
    """Generalised advantage estimation (Schulman et al. 2016).

    d_t = r_t + gamma (1 - terminated_t) V(next_obs_t) - V(obs_t);  A_t = d_t + gamma lambda (1 - terminated_t)(1 - truncated_t) A_{t+1};
    target = A + V. A time limit bootstraps with the value of the true successor; a termination does not.

    Args:
        gamma, lambda_: in [0, 1].
        episodic: False carries the return through every reset, as random network distillation does (Burda et al. 2018):
            it bootstraps from the next row and never cuts.

    >>> gae(0.99, 0.95).fresh
    False
    """
    check.number("gamma", gamma, low=0, high=1)
    check.number("lambda_", lambda_, low=0, high=1)

    def evaluate(reward, value, next_value, batch, context):
        chex.assert_equal_shape([reward, next_value, value[:-1]])
        if episodic:
            discount = gamma * (1 - batch.terminated)
            trace = lambda_ * discount * (1 - batch.truncated)
            delta = reward + discount * next_value - value[:-1]
        else:
            trace = jnp.full_like(reward, gamma * lambda_)
            delta = reward + gamma * value[1:] - value[:-1]
        advantage = jax.vmap(discounted_sum, 1, 1)(delta, trace)
        return advantage, advantage + value[:-1]

    return Returns(evaluate)


def scale(coef: float | jax.Array | Callable, returns: Returns) -> Returns:
    """`returns` with its advantage times `coef` (a number or a schedule `update -> coef`); the target stays.

    >>> scale(2.0, gae(0.999)).fresh
    False
    """

    def evaluate(reward, value, next_value, batch, context):
        advantage, target, *weight = returns.evaluate(reward, value, next_value, batch, context)
        return advantage * (coef(context.update) if callable(coef) else coef), target, *weight

    return Returns(evaluate, returns.fresh)
