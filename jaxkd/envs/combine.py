"""Batches of environments made of batches of environments: several tasks as one, and several views
of one observation.

Legend of shapes: `B` environments, `B_i` of task i, `O` size of the longest flat observation, `A`
actions of the task that has most.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import Discrete, Env, TimeStep, UsageError


def concat(*envs: Env) -> Env:
    """Several tasks as one batch: environment after environment, B = sum B_i, each stepped with
    `fold_in(key, i)`.

    An observation is that of `pad`: {"obs": float32 [O], "task": int32 [], "mask": bool [A]}; the
    learner then reports "return/<task>" too. The limits of the tasks may differ: `max_steps` is the
    longest, `cut_steps` the shortest. `evaluate` judges the tasks one by one with `pad(env,
    like=...)`.

    Args:
        envs: with discrete actions. Their names become `tasks`; equal ones are numbered.

    Returns:
        an Env whose `env_state` is the tuple of theirs.

    >>> import jaxkd
    >>> make = jaxkd.envs.make
    >>> both = concat(make("CartPole-v1", num_envs=2), make("Acrobot-v1", num_envs=3))
    >>> both.num_envs, both.action_space, both.tasks
    (5, Discrete(n=3), ('CartPole-v1', 'Acrobot-v1'))
    >>> both.reset(jax.random.key(0))[1]["task"]
    Array([0, 0, 1, 1, 1], dtype=int32)
    """
    if not envs:
        raise UsageError("concat needs at least one Env.")
    for env in envs:
        _check_single(env)
    groups = {env.group_size for env in envs}
    if len(groups) > 1:
        raise UsageError(f"concat needs one group_size, got {sorted(groups)}.")
    sizes: dict[str, Any] = dict(
        obs_size=max(_size(env) for env in envs),
        num_actions=max(env.action_space.n for env in envs),
    )
    parts = [pad(env, task=i, **sizes) for i, env in enumerate(envs)]
    limits = [env.max_steps for env in envs if env.max_steps]
    cutting = [env for env in envs if env.truncates]
    cuts = [env.cut_steps for env in cutting if env.cut_steps is not None]
    names = [env.name for env in envs]

    def keys(key):
        return [jax.random.fold_in(key, i) for i in range(len(parts))]

    def reset(key):
        begun = [part.reset(own) for part, own in zip(parts, keys(key), strict=True)]
        states, obs = zip(*begun, strict=True)
        return states, _joined(*obs)

    def step(key, env_state, action):
        actions = jnp.split(action, _ends(parts)[:-1])
        rows = zip(parts, keys(key), env_state, actions, strict=True)
        stepped = [part.step(own, state, chosen) for part, own, state, chosen in rows]
        states, steps = zip(*stepped, strict=True)
        return states, _joined(*_all_weighted(steps))

    return parts[0]._replace(
        reset=reset,
        step=step,
        num_envs=_ends(parts)[-1],
        max_steps=max(limits) if len(limits) == len(envs) else None,
        cut_steps=min(cuts, default=None) if len(cuts) == len(cutting) else None,
        truncates=any(env.truncates for env in envs),
        name="+".join(names),
        tasks=_numbered(names),
        sticky=tuple(env.sticky for env in envs),
    )


def pad(
    env: Env,
    *,
    like: Env | None = None,
    obs_size: int | None = None,
    num_actions: int | None = None,
    task: int = 0,
) -> Env:
    """One task in the form of several: obs = {"obs": float32 [O], "task": int32 [], "mask": bool
    [A]}.

    "obs" is flattened and filled up with zeros, "mask" says which actions the task has; an action
    beyond is its last one.

    Args:
        env: with discrete actions.
        like: the `concat` whose O and A it gets, to `evaluate` one of its tasks alone.
        obs_size, num_actions: O and A without `like`; default its own.
        task: the number that is in obs["task"].

    >>> import jaxkd
    >>> env = pad(jaxkd.envs.make("CartPole-v1", num_envs=2), obs_size=6, num_actions=3, task=1)
    >>> env.reset(jax.random.key(0))[1]["mask"][0]
    Array([ True,  True, False], dtype=bool)
    """
    _check_single(env)
    if like is not None:
        _check_like(like, task)
        obs_size, num_actions = like.obs_spec["obs"].shape[0], like.action_space.n
    number, legal = num_actions or env.action_space.n, env.action_space.n
    length = obs_size or _size(env)
    if length < _size(env) or number < legal:
        raise UsageError(
            f"{env.name!r} has {_size(env)} numbers and {legal} actions, more than "
            f"obs_size={length} or num_actions={number}."
        )

    def observe(obs):
        flat = jnp.concatenate(
            [x.reshape(env.num_envs, -1).astype(jnp.float32) for x in jax.tree.leaves(obs)], axis=1
        )
        mask = jnp.broadcast_to(jnp.arange(number) < legal, (env.num_envs, number))
        return {
            "obs": jnp.pad(flat, ((0, 0), (0, length - flat.shape[1]))),
            "task": jnp.full(env.num_envs, task, jnp.int32),
            "mask": mask,
        }

    spec = {
        "obs": jax.ShapeDtypeStruct((length,), jnp.float32),
        "task": jax.ShapeDtypeStruct((), jnp.int32),
        "mask": jax.ShapeDtypeStruct((number,), jnp.bool_),
    }
    padded = _observed(env, observe, spec)
    step = lambda key, env_state, action: padded.step(
        key, env_state, jnp.minimum(action, legal - 1)
    )
    return padded._replace(step=step, action_space=Discrete(number))


def view(env: Env, **fields: Callable) -> Env:
    """The observation as a dict of functions of it: a privileged teacher selects one field, a blind
    student another.

    Args:
        fields: by name a function of ONE observation; it may return any pytree.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    >>> places = jnp.array([0, 2])                          # blind to velocities
    >>> env = view(env, full=lambda obs: obs, blind=lambda obs: obs[places])
    >>> teacher = jaxkd.networks.mlp(env, (64,), select="full")
    >>> student = jaxkd.networks.mlp(env, (64,), select="blind")
    """
    check.kind("env", env, Env, "an Env (jaxkd.envs.make)")
    if not fields:
        raise UsageError("view needs at least one field, such as full=lambda obs: obs.")

    def one(obs):
        return {name: field(obs) for name, field in fields.items()}

    return _observed(env, jax.vmap(one), jax.eval_shape(one, env.obs_spec))._replace(
        tasks=env.tasks if "task" in fields else ()
    )


def _observed(env: Env, observe: Callable, obs_spec: Any) -> Env:
    """`env` with `observe` (of a batch) applied to every observation."""

    def reset(key):
        env_state, obs = env.reset(key)
        return env_state, observe(obs)

    def step(key, env_state, action):
        env_state, now = env.step(key, env_state, action)
        return env_state, TimeStep(observe(now.obs), observe(now.next_obs), *now[2:])

    return env._replace(reset=reset, step=step, obs_spec=obs_spec)


def _joined(*trees: Any) -> Any:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)


def _numbered(names: list[str]) -> tuple[str, ...]:
    """The names, those that stand there more than once with their place."""
    return tuple(name if names.count(name) == 1 else f"{name}#{i}" for i, name in enumerate(names))


def _all_weighted(steps: tuple[TimeStep, ...]) -> list[TimeStep]:
    """The steps, all with weights where one of them says its own."""
    if not any(jax.tree.leaves(step.weight) for step in steps):
        return list(steps)
    weigh = lambda step: step._replace(weight=jnp.ones_like(step.reward))
    return [step if jax.tree.leaves(step.weight) else weigh(step) for step in steps]


def _ends(envs: list[Env]) -> list[int]:
    """Where each one's rows end."""
    return [sum(env.num_envs for env in envs[: i + 1]) for i in range(len(envs))]


def _size(env: Env) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(env.obs_spec))


def _check_single(env: Any) -> None:
    check.kind("env", env, Env, "an Env (jaxkd.envs.make)")
    if not isinstance(env.action_space, Discrete):
        raise UsageError(
            f"{env.name!r} has continuous actions ({env.action_space}); concat and pad need "
            f"discrete ones."
        )
    if env.tasks:
        raise UsageError(f"{env.name!r} is several tasks already: give all of them to one concat.")


def _check_like(like: Any, task: int) -> None:
    check.kind("like", like, Env, "the Env that envs.concat returned")
    if not like.tasks:
        raise UsageError(
            f"like={like.name!r} has no tasks; give the Env that envs.concat returned."
        )
    if not 0 <= task < len(like.tasks):
        raise UsageError(
            f"task must be in [0, {len(like.tasks) - 1}] ({', '.join(like.tasks)}), got {task}."
        )
