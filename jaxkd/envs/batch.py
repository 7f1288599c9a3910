"""A batch of environments that reset themselves, from how one begins and how one steps.

Legend of shapes: `B` environments, `G` members of a group.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.base import TimeStep
from jaxkd.cpu import unrolled, where_any


class Counted(NamedTuple):
    """An `env_state` of which the adapter counts something itself; otherwise `env_state` is
    gymnax's state alone.
    """

    inner: Any  # [B, ...] gymnax's state
    time: Any = ()  # int32 [B], steps of the episode; () where the environment knows its limit
    episode: Any = ()  # int32 [B], number of the episode; () without groups
    group_key: Any = ()  # key [B], equal within a group; () without groups


class First(NamedTuple):
    """How an episode begins."""

    obs: Any
    env_state: Any


class Ended(NamedTuple):
    """One transition before the adapter's reset."""

    next_obs: Any  # the true successor
    obs: Any  # next_obs, or the first of a new episode where the environment has reset itself
    inner: Any  # belongs to `obs`
    reward: jax.Array  # []
    terminated: jax.Array  # bool []
    truncated: jax.Array  # bool [], never with terminated
    weight: Any = ()  # float32 [], what the action counts for the learner; () is 1


class One(NamedTuple):
    """How one environment of a batch begins, steps and begins anew."""

    begin: Callable  # (key, episode=(), group_key=()) -> (obs, env_state)
    advance: Callable  # (key, env_state, action) -> (Ended, env_state)
    restart: (
        Callable  # (key, Ended, env_state) -> (obs, env_state), of a new episode where it ended
    )


def batch(start, transition, observe, num_envs, group_size, counts_time, own_step, pool):
    """-> (reset, step) of B environments.

    Args:
        start: key -> First, one episode's beginning.
        transition: (key, inner, action, time) -> Ended, one environment's step.
        observe: one raw observation -> what the policy sees.
        num_envs, group_size: B and G.
        counts_time: the adapter counts the steps.
        own_step: the environment has a step of its own that resets it.
        pool: how many beginnings are drawn at a time; None: one for every environment.
    """
    grouped = group_size > 1
    resets_itself = own_step and not (grouped or counts_time)
    begin, advance, restart = _one(start, transition, grouped, counts_time)

    def reset(key):
        if grouped:
            group_keys = jax.random.split(key, num_envs // group_size)
            group_keys = group_keys[jnp.arange(num_envs) // group_size]
            numbers = jnp.zeros(num_envs, jnp.int32)
            obs, env_state = jax.vmap(begin, (None, 0, 0))(key, numbers, group_keys)
        else:
            obs, env_state = jax.vmap(begin)(jax.random.split(unrolled(key), num_envs))
        return env_state, jax.vmap(observe)(obs)

    def step(key, env_state, action):
        keys = jax.random.split(unrolled(key), num_envs + (pool is not None))
        # gymnax's: one key of each pair for the step, one for the reset; an environment with a
        # step of its own divides the whole one so itself, and what it draws for a reset is dropped
        own = keys[:num_envs]
        pairs = jax.vmap(jax.random.split)(jax.random.clone(own) if own_step else own)
        ended, after = jax.vmap(advance)(own if own_step else pairs[:, 0], env_state, action)
        here = ended.obs, after
        done = jnp.logical_or(ended.terminated, ended.truncated)
        if pool is not None:
            here = _pooled(begin, pool, keys[-1], done, here)
        elif not resets_itself:
            here = where_any(done, jax.vmap(restart), here, pairs[:, 1], ended, after)
        obs, after = here
        flags = (flag.astype(jnp.float32) for flag in (ended.terminated, ended.truncated))
        seen, successor = jax.vmap(observe)(obs), jax.vmap(observe)(ended.next_obs)
        return after, TimeStep(seen, successor, ended.reward, *flags, weight=ended.weight)

    return reset, step


def _one(start, transition, grouped, counts_time) -> One:
    counting = grouped or counts_time

    def begin(key, episode=(), group_key=()):
        if grouped:
            key = jax.random.fold_in(unrolled(group_key), episode)
        obs, inner = start(key)
        time = jnp.zeros((), jnp.int32) if counts_time else ()
        return obs, Counted(inner, time, episode, group_key) if counting else inner

    def advance(key, env_state, action):
        before = env_state if counting else Counted(env_state)
        time = before.time + 1 if counts_time else ()
        ended = transition(key, before.inner, action, time)
        after = before._replace(inner=ended.inner, time=time) if counting else ended.inner
        return ended, after

    def restart(key, ended, after):
        group_key = after.group_key if grouped else ()
        obs, begun = begin(key, after.episode + 1, group_key) if grouped else begin(key)
        if grouped:  # the group's key stays; to choose between it and itself would use it up
            begun, after = begun._replace(group_key=()), after._replace(group_key=())
        done = jnp.logical_or(ended.terminated, ended.truncated)
        choose = lambda new, old: jax.lax.select(done, new, old)
        obs, chosen = jax.tree.map(choose, (obs, begun), (ended.obs, after))
        return obs, chosen._replace(group_key=group_key) if grouped else chosen

    return One(begin, advance, restart)


def _pooled(begin, pool, key, done, state):
    """`state` [B, ...] with the beginning of an episode where `done` [B].

    Beginnings are drawn `pool` at a time until each environment that is done has its own.
    """

    def serve(loop):
        key, waiting, state = loop
        key, key_pool = jax.random.split(key)
        fresh = jax.vmap(begin)(jax.random.split(key_pool, pool))
        place = jnp.cumsum(waiting.astype(jnp.int32)) - 1
        served = jnp.logical_and(waiting, place < pool)
        index = jnp.where(served, place, 0)

        def give(new, old):
            return jnp.where(served.reshape(served.shape + (1,) * (old.ndim - 1)), new[index], old)

        return (
            key,
            jnp.logical_and(waiting, jnp.logical_not(served)),
            jax.tree.map(give, fresh, state),
        )

    return jax.lax.while_loop(lambda loop: jnp.any(loop[1]), serve, (key, done, state))[2]
