"""A policy acting alone: whole episodes, and the statistics that a claim needs."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import check
from jaxkd.base import Env, Evaluation, Policy, UsageError

_PATIENCE = 2  # times the time limit that an episode is waited for: a limit may be misread


class _Play(NamedTuple):
    """The loop of an evaluation; `R` rounds, so that every environment plays R episodes."""

    step: jax.Array  # int32 []
    env_state: Any
    obs: Any  # [B, ...]
    reset: jax.Array  # float32 [B]
    carry: Any  # [B, ...]
    running: Evaluation  # [B], of the episode under way
    played: jax.Array  # int32 [B], episodes that have ended
    finished: Evaluation  # [R, B]


def evaluate(
    env: Env,
    policy: Policy,
    params: Any,
    key: jax.Array,
    *,
    num_episodes: int,
    greedy: bool | jax.Array = True,
    gamma: float = 0.99,
) -> Evaluation:
    """Plays whole episodes, the same number in every environment: short ones are not favoured.

    An episode that does not end within twice the time limit (an environment that goes on beyond
    the limit it states) is unfinished: its returns are nan and its length is 0. The mean of the
    others favours short episodes, so a plain mean, which is nan, says that something is wrong.

    Params that hold nan have returns of nan: such a policy acts, the first of its actions for one,
    and what it earns looks like any other score.

    Returns count every reward, also where a step has `TimeStep.weight` 0: a weight says what is
    learnt from, not what is scored.

    Args:
        env: needs a time limit (`max_steps=` in `envs.make` gives one).
        num_episodes: E, rounded up to a multiple of `env.num_envs`.
        greedy: the policy's mode; False samples. It may be a traced value: both ways are one
            compiled program.
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
            f"{env.name!r} has no time limit, so an evaluation might never end. "
            "Give one: envs.make(..., max_steps=1000)."
        )
    check.kind("policy", policy, Policy, "a Policy (jaxkd.networks.mlp and others)")
    check.fits("policy", policy, env)
    check.params("params", params, policy, "evaluate takes those of one seed, or jax.vmap it.")
    check.key(key)
    rounds = -(-num_episodes // env.num_envs)
    return _evaluate(env, policy, params, key, rounds, greedy, gamma)


@partial(jax.jit, static_argnums=(0, 1, 4))
def _evaluate(env, policy, params, key, rounds, greedy, gamma):
    key_reset, key_steps = jax.random.split(key)
    most_steps = rounds * _PATIENCE * env.max_steps

    def under_way(play):
        return (play.step < most_steps) & jnp.any(play.played < rounds)

    def advance(play):
        key_act, key_env = jax.random.split(jax.random.fold_in(key_steps, play.step))
        carry, out = policy.step(params, play.carry, play.obs, play.reset)
        action = jnp.where(greedy, out.policy.mode(), out.policy.sample(key_act))
        env_state, now = env.step(key_env, play.env_state, action)
        running = _add(play.running, now.reward, gamma)
        done = now.terminated + now.truncated
        # The row of each environment's episode under way; none once it has played all of them.
        row = play.played[None] == jnp.arange(rounds)[:, None]  # [R, B]
        ends = row & (done > 0)[None]
        return _Play(
            play.step + 1,
            env_state,
            now.obs,
            done,
            carry,
            jax.tree.map(lambda x: jnp.where(done > 0, jnp.zeros_like(x), x), running),
            play.played + done.astype(jnp.int32),
            jax.tree.map(lambda old, new: jnp.where(ends, new[None], old), play.finished, running),
        )

    start = _begin(env, policy, key_reset, rounds)
    played = jax.tree.map(jnp.ravel, jax.lax.while_loop(under_way, advance, start).finished)
    floats = [x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.inexact)]
    sound = jnp.all(jnp.stack([~jnp.any(jnp.isnan(x)) for x in floats] or [jnp.asarray(True)]))
    scored = lambda x: jnp.where(sound, x, jnp.nan)
    return Evaluation(scored(played.returns), played.lengths, scored(played.discounted_returns))


def _begin(env: Env, policy: Policy, key: jax.Array, rounds: int) -> _Play:
    """Before the first step; no episode is finished."""
    env_state, obs = env.reset(key)
    reset = jnp.ones(env.num_envs, jnp.float32)
    carry = policy.initial_carry(env.num_envs)
    none, no_steps = jnp.zeros(env.num_envs, jnp.float32), jnp.zeros(env.num_envs, jnp.int32)
    unfinished = Evaluation(
        returns=jnp.full((rounds, env.num_envs), jnp.nan, jnp.float32),
        lengths=jnp.zeros((rounds, env.num_envs), jnp.int32),
        discounted_returns=jnp.full((rounds, env.num_envs), jnp.nan, jnp.float32),
    )
    running = Evaluation(none, no_steps, none)
    return _Play(jnp.int32(0), env_state, obs, reset, carry, running, no_steps, unfinished)


def _add(running: Evaluation, reward: jax.Array, gamma: Any) -> Evaluation:
    """The episodes under way, one step longer."""
    discount = jnp.float32(gamma) ** running.lengths.astype(jnp.float32)
    return Evaluation(
        returns=running.returns + reward,
        lengths=running.lengths + 1,
        discounted_returns=running.discounted_returns + discount * reward,
    )


def iqm(scores: Any) -> float:
    """Interquartile mean: the mean of the middle half of all values (Agarwal et al. 2021).

    Values at the edges of that half have fractional weights: unlike scipy's trim_mean where the
    number of values is no multiple of 4. nan where a value is nan.

    Raises:
        UsageError: without values.

    >>> iqm([0.0, 1.0, 2.0, 100.0])
    1.5
    """
    ordered = np.sort(np.asarray(scores, np.float64).ravel())
    size = ordered.size
    if size == 0:
        raise UsageError("iqm needs at least one value.")
    if np.isnan(ordered[-1]):  # sorted last, where its weight may be 0
        return float("nan")
    rank = np.arange(size)
    weight = np.clip(np.minimum(rank + 1, 0.75 * size) - np.maximum(rank, 0.25 * size), 0, 1)
    inner = weight > 0  # 0 * inf would be nan
    return float(np.sum(weight[inner] * ordered[inner]) / np.sum(weight))


def interval(
    scores: Any, *, statistic: Any = iqm, level: float = 0.95, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic.

    For scores [tasks, seeds] the seeds are drawn within each task (stratified).

    >>> low, high = interval([1.0, 2.0, 3.0, 4.0])
    >>> 1.0 <= low < high <= 4.0
    True
    """
    check.number("level", level, low=0, high=1)
    by_task = np.atleast_2d(np.asarray(scores, np.float64))
    generator = np.random.default_rng(seed)
    draws = generator.integers(by_task.shape[1], size=(samples, *by_task.shape))
    values = [statistic(np.take_along_axis(by_task, draw, axis=1)) for draw in draws]
    low, high = np.percentile(values, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def actor_size(policy: Policy, params: Any, obs_spec: Any, *, num_envs: int = 1) -> int:
    """How many parameters the action distribution depends on: what has to be deployed.

    Statistics do not count, nor do masks: a leaf of bools is one, and each False in it takes a
    weight away (none where only shapes are given). `num_envs` is the batch of a policy whose params
    are of environments, `networks.per_env`.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    >>> teacher = jaxkd.networks.mlp(env, hidden=(64, 64), separate=True)
    >>> actor_size(teacher, teacher.init(jaxkd.seeds(0, 1)[0]), env.obs_spec)
    4610
    """
    obs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), obs_spec)

    def act(params, obs):
        return policy.step(params, policy.initial_carry(1), obs, jnp.ones(1, jnp.float32))[1].policy

    read = check.reads(act, params=params, obs=obs)
    counted, updated = 0, _statistics(policy, params, obs_spec, num_envs)
    for path, leaf in jax.tree_util.tree_flatten_with_path({"params": params})[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name not in read:
            continue
        if leaf.dtype == bool:
            counted -= 0 if isinstance(leaf, jax.ShapeDtypeStruct) else int(np.sum(~leaf))
        elif name not in updated:
            counted += int(np.prod(leaf.shape))
    return counted


def _statistics(policy: Policy, params: Any, obs_spec: Any, num_envs: int) -> set[str]:
    """The leaves of the params, "params.a.b", that `observe` changes."""
    rows = lambda x: jax.ShapeDtypeStruct((1, num_envs, *x.shape), x.dtype)
    obs = jax.tree.map(rows, obs_spec)
    traced = jax.make_jaxpr(policy.observe)(params, obs).jaxpr
    leaves = jax.tree_util.tree_flatten_with_path({"params": params})[0]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    pairs = zip(names, traced.invars, traced.outvars, strict=False)  # obs comes behind the params
    return {name for name, before, after in pairs if after is not before}
