"""Sticky actions: the environment sometimes does again what it did before.

Legend of shapes: `B` environments.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import check
from jaxkd.base import Env, UsageError
from jaxkd.cpu import unrolled


class Sticky(NamedTuple):
    """An `env_state` that remembers what was done last."""

    inner: Any  # [B, ...] the environment's own state
    action: jax.Array  # int32 [B] or float32 [B, D], done last
    acted: jax.Array  # bool [B], false at the beginning of an episode: nothing to repeat


def with_sticky_actions(env: Env, probability: Any) -> Env:
    """`env`, in which each environment does with this probability what it did one step before
    instead of what it is told (Machado et al. 2018, Revisiting the Arcade Learning Environment).

    What it did, not what it was told: one action may go on for several steps. An episode begins
    with the action that was chosen. Who learns sees the actions that were chosen, as if chance were
    part of the game. A plain 0 gives back `env` as it is.
    """
    if not isinstance(probability, jax.Array) and probability == 0:
        return env

    def reset(key):
        env_state, obs = env.reset(key)
        nothing = jax.vmap(lambda _: _no_action(env))(jnp.arange(env.num_envs))
        return Sticky(env_state, nothing, jnp.zeros(env.num_envs, bool)), obs

    def step(key, env_state, action):
        key_env, key_sticky = jax.random.split(key)
        repeats = jax.random.bernoulli(unrolled(key_sticky), probability, (env.num_envs,))
        repeats = jnp.logical_and(repeats, env_state.acted)
        rows = repeats.reshape(repeats.shape + (1,) * (env_state.action.ndim - 1))
        done = jnp.where(rows, env_state.action, action.astype(env_state.action.dtype))
        inner, now = env.step(key_env, env_state.inner, done)
        goes_on = now.terminated + now.truncated == 0
        return Sticky(inner, done, goes_on), now

    return env._replace(reset=reset, step=step, sticky=probability)


def _no_action(env: Env) -> jax.Array:
    """Of one environment, in the shape of an action."""
    shape = getattr(env.action_space, "shape", None)
    return jnp.zeros((), jnp.int32) if shape is None else jnp.zeros(shape, jnp.float32)


def check_probability(probability: Any) -> None:
    """Raises unless it is a number in [0, 1]; a traced one passes."""
    if isinstance(probability, bool) or not isinstance(
        probability, int | float | np.number | np.ndarray | jax.Array
    ):
        raise UsageError(
            f"sticky must be the probability that an action is repeated, such as 0.1, "
            f"got {probability!r}."
        )
    if jnp.shape(probability) != ():
        raise UsageError(
            f"sticky is one probability, got an array of shape {jnp.shape(probability)}: "
            f"for several vmap over environments that are made inside."
        )
    check.number("sticky", probability, low=0, high=1)
