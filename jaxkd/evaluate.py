"""A policy acting alone: whole episodes, and the statistics that a claim needs."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import check
from jaxkd.base import Env, Evaluation, Policy, UsageError


def evaluate(
    env: Env,
    policy: Policy,
    params: Any,
    key: jax.Array,
    *,
    num_episodes: int,
    greedy: bool = True,
    gamma: float = 0.99,
) -> Evaluation:
    """Plays whole episodes; every environment plays the same number, so that short episodes are not favoured.

    Args:
        env: needs a time limit (`max_steps=` in `envs.make` gives one).
        num_episodes: E, rounded up to a multiple of `env.num_envs`.
        greedy: the policy's mode; False samples.
        gamma: of the discounted returns.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> policy, key = jaxkd.networks.mlp(env, (8,)), jaxkd.seeds(0, 1)[0]
    >>> evaluate(env, policy, policy.init(key), key, num_episodes=6).returns.shape
    (8,)
    """
    check.kind("env", env, Env, "an Env (jaxkd.envs.make)")
    check.count("num_episodes", num_episodes)
    if env.max_steps is None:
        raise UsageError(
            f"{env.name!r} has no time limit, so an evaluation might never end. Give one: envs.make(..., max_steps=1000)."
        )
    check.fits("policy", policy, env)
    return _evaluate(env, policy, params, key, -(-num_episodes // env.num_envs), greedy, gamma)


@partial(jax.jit, static_argnums=(0, 1, 4, 5))
def _evaluate(env, policy, params, key, rounds, greedy, gamma):
    key_reset, key_steps = jax.random.split(key)
    env_state, obs = env.reset(key_reset)
    zeros = jnp.zeros(env.num_envs)
    running = Evaluation(zeros, jnp.zeros(env.num_envs, jnp.int32), zeros)
    finished = jax.tree.map(lambda x: jnp.zeros((rounds, env.num_envs), x.dtype), running)
    start = (
        jnp.int32(0),
        env_state,
        obs,
        jnp.ones(env.num_envs),
        policy.initial_carry(env.num_envs),
        running,
        zeros.astype(jnp.int32),
        finished,
    )

    def under_way(state):
        return (state[0] < rounds * env.max_steps) & jnp.any(state[6] < rounds)

    def body(state):
        step, env_state, obs, reset, carry, running, played, finished = state
        key_act, key_env = jax.random.split(jax.random.fold_in(key_steps, step))
        carry, out = policy.step(params, carry, obs, reset)
        action = out.policy.mode() if greedy else out.policy.sample(key_act)
        env_state, now = env.step(key_env, env_state, action)
        discount = jnp.float32(gamma) ** running.lengths
        rewards = now.reward, jnp.ones_like(running.lengths), discount * now.reward
        running = Evaluation(*jax.tree.map(jnp.add, tuple(running), rewards))
        done = now.terminated + now.truncated
        here = (done > 0)[None] & (played[None] == jnp.arange(rounds)[:, None])  # [rounds, B]
        finished = jax.tree.map(lambda old, new: jnp.where(here, new[None], old), finished, running)
        running = jax.tree.map(lambda x: jnp.where(done > 0, jnp.zeros_like(x), x), running)
        return (
            step + 1,
            env_state,
            now.obs,
            done,
            carry,
            running,
            played + done.astype(jnp.int32),
            finished,
        )

    return jax.tree.map(jnp.ravel, jax.lax.while_loop(under_way, body, start)[-1])


def iqm(scores: Any) -> float:
    """Interquartile mean: the mean of the middle half of all values, fractional weights at its edges (Agarwal et al. 2021).

    >>> iqm([0.0, 1.0, 2.0, 100.0])
    1.5
    """
    x = np.sort(np.asarray(scores, np.float64).ravel())
    rank = np.arange(x.size)
    weight = np.clip(np.minimum(rank + 1, 0.75 * x.size) - np.maximum(rank, 0.25 * x.size), 0, 1)
    return float(np.sum(weight * x) / np.sum(weight))


def interval(
    scores: Any, *, statistic: Any = iqm, level: float = 0.95, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic; for scores [tasks, seeds] the seeds are drawn within each task (stratified).

    >>> low, high = interval([1.0, 2.0, 3.0, 4.0])
    >>> 1.0 <= low < high <= 4.0
    True
    """
    check.number("level", level, low=0, high=1)
    x = np.atleast_2d(np.asarray(scores, np.float64))
    draws = np.random.default_rng(seed).integers(x.shape[1], size=(samples, *x.shape))
    values = [statistic(np.take_along_axis(x, draw, axis=1)) for draw in draws]
    low, high = np.percentile(values, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def actor_size(policy: Policy, params: Any, obs_spec: Any) -> int:
    """How many parameters the policy's action distribution depends on: what has to be deployed. Statistics do not count.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    >>> teacher = jaxkd.networks.mlp(env, hidden=(64, 64), separate=True)
    >>> actor_size(teacher, teacher.init(jaxkd.seeds(0, 1)[0]), env.obs_spec)
    4610
    """
    obs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), obs_spec)

    def act(params, obs):
        return policy.step(params, policy.initial_carry(1), obs, jnp.ones(1))[1].policy

    read = check.reads(act, params=params, obs=obs)
    leaves = jax.tree_util.tree_flatten_with_path({"params": params})[0]
    sizes = {
        jax.tree_util.keystr(path, simple=True, separator="."): int(np.prod(x.shape))
        for path, x in leaves
    }
    return sum(size for path, size in sizes.items() if path in read and ".statistics." not in path)
