"""The adapter to gymnax, and the only file that imports it.

Legend of shapes: `B` environments, `G` members of a group, `D` action dimensions.

A batch is `vmap` over one environment, and one environment is gymnax's own arithmetic: `step_env`,
`is_truncated`, `reset_env`, select. Nothing of `info` leaves it. gymnax is imported where it is
used, because the import takes seconds.
"""

import contextlib
import dataclasses
import difflib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxkd.base import Box, Discrete, Env, UsageError
from jaxkd.check import count, divides
from jaxkd.envs import protocol
from jaxkd.envs.batch import Ended, First, batch
from jaxkd.envs.limits import cut_steps, ends, fields, time_limit, with_limit
from jaxkd.envs.seaquest import ShortLists
from jaxkd.envs.sticky import check_probability, with_sticky_actions
from jaxkd.envs.tasks import NAMED

_NEEDS_DOWNLOAD, _SEAQUEST = "MNISTBandit-bsuite", "Seaquest-MinAtar"
_NARROW = {"float64": jnp.float32, "int64": jnp.int32, "uint64": jnp.uint32}


# --- public --------------------------------------------------------------------------------------


def ids() -> tuple[str, ...]:
    """The environments that `make` knows by name: gymnax's, without the one that needs a download,
    those a user registered, and problems in tokens (`envs.tasks`).
    """
    others = (name for name in _gymnax().registered_envs if name != _NEEDS_DOWNLOAD)
    return (*others, *NAMED)


def make(
    id_or_environment: Any,
    num_envs: int,
    *,
    env_params: Any = None,
    group_size: int = 1,
    max_steps: int | None = None,
    reset_pool: int | None = None,
    sticky: Any = 0.0,
    **env_kwargs: Any,
) -> Env:
    """A batch of environments that reset themselves.

    Without groups a trajectory is that of `jax.vmap(environment.step, (0, 0, 0, None))` on
    `jax.random.split(key, num_envs)`, operation by operation (bit-equal, unless XLA fuses the two
    differently). In groups (GRPO), environment i belongs to group i // G and the n-th episodes of a
    group all begin with `reset_env(fold_in(group_key, n))`; what an environment carries over from
    one episode to the next is dropped there.

    Args:
        id_or_environment: one of `ids()`, or an object with gymnax's `reset_env` and `step_env`
            (and `is_truncated`; without it, as in Craftax and gymnax 0.x, `done` is divided by the
            time limit where state and parameters show one). `info["weight"]` [], if it is there,
            is what the action counts for the learner: 0 for a forced one, or for padding.
        num_envs: B.
        env_params: its parameters; floats may be traced values, so a sweep over them is a `vmap`.
        group_size: G, a divisor of B.
        max_steps: time limit in steps. It replaces the one in the parameters; where the environment
            has none, the adapter counts and cuts.
        reset_pool: how many beginnings a step draws at a time, as often as it takes for each
            episode that ended to get one of its own; None draws one for every environment, on a
            CPU only in steps where an episode ends. Which draw an episode gets depends on who
            ended, not on the draw, so both are equal in distribution. Worth a try on a CPU where
            few episodes end in a step (benchmarks/speed/levers.py); on an accelerator a loop of
            unknown length is dear.
        sticky: the probability that an environment does again what it did one step before, instead
            of what it is told (Machado et al. 2018, who take 0.25; MinAtar's own is 0.1). Never in
            the first step of an episode. It may be a traced value. Without it a policy that plays
            its best action may play one and the same game for ever, as in SpaceInvaders-MinAtar.
        **env_kwargs: those named like a field of the parameters replace it, the others go to the
            environment's constructor. Of Seaquest-MinAtar, `entities=32` is room for 32 of each
            kind where gymnax has 100: the same frames, faster on a CPU, and a reward of nan should
            a list be full.

    Returns:
        An Env. Actions are int32 [B], or float32 [B, D] in [-1, 1]^D for a Box: clipped, scaled to
        its bounds (clipped to them only, where one is infinite) and reshaped. A Discrete
        observation becomes one-hot float32 [n]; all others keep shape and dtype.

    Raises:
        UsageError: an unknown name or argument, sizes that do not fit, a traced time limit without
            `max_steps`.

    >>> env = make("CartPole-v1", 8)
    >>> env_state, obs = env.reset(jax.random.key(0))
    >>> obs.shape, env.action_space, env.max_steps
    ((8, 4), Discrete(n=2), 500)
    """
    _check_numbers(num_envs, group_size, max_steps, reset_pool, sticky)
    environment, params, name = construct(id_or_environment, env_params, env_kwargs)
    own_step = has_own_step(environment)
    _check_pool(name, reset_pool, own_step, group_size)
    params = with_limit(params, max_steps)
    begin = beginning(environment, params, own_step, name)
    like = jax.eval_shape(lambda: begin(jax.random.key(0)))
    limit = time_limit(environment, params, like.env_state, max_steps, name)
    space, to_action = actions(environment, params, name)
    start = lambda key: protocol.cast(begin(key), like, name)
    transition = _transition(environment, params, to_action, limit, like, own_step, name)
    observe = _observation(environment, params, like.obs)
    seen = jax.eval_shape(lambda: observe(start(jax.random.key(0)).obs))
    reset, step = batch(
        start, transition, observe, num_envs, group_size, limit.counted, own_step, reset_pool
    )
    env = Env(
        reset=reset,
        step=step,
        num_envs=int(num_envs),
        obs_spec=jax.tree.map(_strong, seen),
        action_space=space,
        max_steps=limit.max_steps,
        truncates=hasattr(environment, "is_truncated") or limit.max_steps is not None,
        cut_steps=_cut_steps(environment, params, limit, start, transition, space),
        group_size=int(group_size),
        name=name,
    )
    return with_sticky_actions(env, sticky)


def beginning(environment, params, own_step, name):
    """-> function key -> First, as the environment begins an episode."""

    @protocol.given(environment, params)
    def begin(params, key):
        method = "reset" if own_step else "reset_env"
        returned = getattr(environment, method)(key, params)
        return First(*protocol.values(returned, protocol.RESET, method, name))

    return begin


def _check_pool(name, reset_pool, own_step, group_size):
    if reset_pool is None or not (own_step or group_size > 1):
        return
    why = f"begins episodes alike in groups of {group_size}"
    if own_step:
        why = "resets itself in its own step"
    raise UsageError(f"{name!r} {why}, so no pool can give it beginnings: leave reset_pool out.")


def _cut_steps(environment, params, limit, start, transition, space):
    """The least distance between two cuts, see `limits.cut_steps`."""

    def begin(key):  # the action too is made where this is called: outside of a user's trace
        discrete = isinstance(space, Discrete)
        action = jnp.zeros((), jnp.int32) if discrete else jnp.zeros(space.shape, jnp.float32)
        return start(key).env_state, action

    def advance(key, state, action):
        return transition(key, state, action, jnp.zeros((), jnp.int32)).inner

    return cut_steps(environment, params, limit, begin, advance)


def _check_numbers(num_envs, group_size, max_steps, reset_pool, sticky):
    count("num_envs", num_envs)
    count("group_size", group_size)
    divides("group_size", group_size, "num_envs", num_envs)
    for name, size in (("max_steps", max_steps), ("reset_pool", reset_pool)):
        if size is not None:
            count(name, size)
    check_probability(sticky)


# --- the environment and its parameters ----------------------------------------------------------


def _check_environment(environment, name):
    """The object itself has gymnax's methods; a wrapper that only forwards them would be passed by
    in silence.
    """
    for method in ("reset_env", "step_env"):
        if isinstance(environment, type) or not hasattr(environment, method):
            raise UsageError(
                f"{name!r} is no environment: give one of jaxkd.envs.ids(), or an object with "
                f"reset_env and step_env"
            )
        if not hasattr(type(environment), method) and method not in vars(environment):
            raise UsageError(
                f"{name!r} forwards {method} to the environment it wraps, so what the wrapper "
                f"does would be lost: "
                f"give the wrapped environment, or an object with a reset_env and a step_env of "
                f"its own"
            )


def _check_space(environment, name):
    if not callable(getattr(environment, "action_space", None)):
        raise UsageError(
            f"{name!r} has no method action_space(params): let it return jaxkd.base.Discrete(n), "
            f"jaxkd.base.Box(shape) or a space of gymnax"
        )


def construct(
    id_or_environment: Any, env_params: Any, env_kwargs: dict[str, Any]
) -> tuple[Any, Any, str]:
    """-> (environment, params, name), with every keyword used, and methods that can be called."""
    by_name = isinstance(id_or_environment, str)
    if by_name:
        name = id_or_environment
        environment = _by_id(name, {})
    else:
        environment = id_or_environment
        name = str(getattr(environment, "name", type(environment).__name__))
    if by_name and name == _SEAQUEST and "entities" in env_kwargs:
        environment = _short_lists(environment, env_kwargs["entities"])
        env_kwargs = {key: value for key, value in env_kwargs.items() if key != "entities"}
    params = _default_params(environment) if env_params is None else env_params
    others = {key: value for key, value in env_kwargs.items() if key not in fields(params)}
    if others and not by_name:
        raise UsageError(
            f"{name!r} is made already, so {_listed(others)} cannot go to its constructor: give "
            f"it where the object is made. "
            f"Parameters: {_listed(fields(params))}"
        )
    if others:
        try:
            environment = _by_id(name, others)
        except TypeError as error:
            raise UsageError(
                f"{name!r} does not take {_listed(others)} ({error}). Parameters: "
                f"{_listed(fields(params))}. "
                f"Constructor arguments: {_listed(inspect.signature(type(environment)).parameters)}"
            ) from error
        params = _default_params(environment) if env_params is None else env_params
    _check_environment(environment, name)
    _check_space(environment, name)
    given = {key: value for key, value in env_kwargs.items() if key not in others}
    return environment, (dataclasses.replace(params, **given) if given else params), name


def _gymnax() -> Any:
    """gymnax, imported when first needed. It makes arrays while it is imported: under a trace they
    would be tracers for good, in 64-bit mode too wide for 32 bits.
    """
    with jax.enable_x64(False), jax.ensure_compile_time_eval():
        import gymnax
    return gymnax


def _by_id(name, arguments):
    """The environment of this name, ours or gymnax's, its arrays concrete even while something is
    being traced.
    """
    if name in NAMED:
        with jax.ensure_compile_time_eval():
            return NAMED[name](**arguments)
    gymnax = _gymnax()
    if name == _NEEDS_DOWNLOAD:
        raise UsageError(
            f"{name!r} downloads MNIST when it is made, which jaxkd never does: make the object "
            f"yourself and pass it"
        )
    if name not in gymnax.registered_envs:
        lower = {known.lower(): known for known in ids()}
        close = difflib.get_close_matches(name.lower(), lower, n=1)
        hint = f" Did you mean {lower[close[0]]!r}?" if close else ""
        raise UsageError(f"unknown environment {name!r}.{hint} (jaxkd envs lists all)")
    with protocol.settings(gymnax), _concrete(arguments):
        return gymnax.make(name, **arguments)[0]


def _short_lists(environment, entities):
    """Seaquest with room for `entities` of each kind."""
    count("entities", entities)
    from gymnax.environments.minatar import seaquest, seaquest_helpers

    return ShortLists(environment, (seaquest, seaquest_helpers), entities)


def _default_params(environment) -> Any:
    with protocol.settings(environment), jax.ensure_compile_time_eval():
        return getattr(environment, "default_params", None)


def _listed(names):
    return ", ".join(names) or "none"


def _concrete(tree):
    """A context in which arrays are computed at once, if nothing in `tree` is traced."""
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))
    return contextlib.nullcontext() if traced else jax.ensure_compile_time_eval()


def has_own_step(environment):
    """True for a gymnax Environment that overrides `step`; found by name, so that plain objects do
    not import gymnax.
    """
    for base in type(environment).__mro__:
        if (base.__module__, base.__name__) == ("gymnax.environments.environment", "Environment"):
            return type(environment).step is not base.step
    return False


# --- actions and observations --------------------------------------------------------------------


def actions(environment, params, name):
    """-> (space, function from a policy's action to the environment's), for gymnax's spaces and
    those of `base`.
    """
    with protocol.settings(environment), _concrete(params):
        space = environment.action_space(params)
    if hasattr(space, "n"):
        return Discrete(int(space.n)), lambda action: action
    if isinstance(space, Box):
        return space, lambda action: jnp.clip(action, -1.0, 1.0)
    if not (hasattr(space, "low") and hasattr(space, "high")):
        raise UsageError(
            f"{name!r} has the action space {space!r}; jaxkd acts in Discrete and Box spaces: "
            f"wrap it into one of them"
        )
    return Box((int(np.prod(space.shape)),)), _scaling(space)


def _scaling(space) -> Callable:
    """-> function from [-1, 1]^D to the bounds of a Box: float32 [D] -> the space's shape."""
    with _concrete((space.low, space.high)):
        low, high = (
            jnp.broadcast_to(jnp.asarray(bound, jnp.float32), space.shape)
            for bound in (space.low, space.high)
        )
        finite = jnp.logical_and(jnp.isfinite(low), jnp.isfinite(high))
        middle = jnp.where(finite, (high + low) / 2, 0.0)
        half = jnp.where(finite, (high - low) / 2, 1.0)

    def to_action(action):
        action = action.reshape(space.shape)
        scaled = middle + half * jnp.where(finite, jnp.clip(action, -1.0, 1.0), action)
        return jnp.clip(scaled, low, high)  # rounding may pass a bound by one bit

    return to_action


def _observation(environment, params, like):
    """-> function on one raw observation: one-hot for a Discrete space, else the identity."""
    leaves = jax.tree.leaves(like)
    if len(leaves) == 1 and leaves[0].shape == () and jnp.issubdtype(leaves[0].dtype, jnp.integer):
        with protocol.settings(environment):
            space = environment.observation_space(params)
        if hasattr(space, "n"):
            return lambda obs: jax.nn.one_hot(obs, int(space.n), dtype=jnp.float32)
    return lambda obs: jax.tree.map(_narrow, obs)


def _narrow(leaf):
    """At most 32 bits, in 64-bit mode too: policies are saved for the same observations."""
    return leaf.astype(_NARROW.get(jnp.result_type(leaf).name, leaf.dtype))


def _strong(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


# --- one environment -----------------------------------------------------------------------------


def _transition(environment, params, to_action, limit, like, own_step, name):
    """-> function (key, inner, action, time) -> Ended of one; `time` counts this step."""

    @protocol.given(environment, params)
    def transition(params, key, inner, action, time):
        action = to_action(action)
        if own_step:
            returned = environment.step(key, inner, action, params)
            returned = protocol.values(returned, protocol.OWN_STEP, "step", name)
            obs, inner, reward, done, cut, info = returned
            next_obs = info["final_observation"]
            done, cut = (
                protocol.scalar(done, bool, "terminated", name),
                protocol.scalar(cut, bool, "truncated", name),
            )
            cut = jnp.logical_or(cut, time >= limit.max_steps) if limit.counted else cut
            cut = jnp.logical_and(cut, jnp.logical_not(done))
        else:
            returned = environment.step_env(key, inner, action, params)
            returned = protocol.values(returned, protocol.STEP, "step_env", name)
            next_obs, inner, reward, done, info = returned
            obs = next_obs
            done, cut = ends(
                environment, params, inner, protocol.scalar(done, bool, "done", name), time, limit
            )
        next_obs, _ = protocol.cast(First(next_obs, inner), like, name)
        obs, inner = protocol.cast(First(obs, inner), like, name)
        return Ended(
            next_obs,
            obs,
            inner,
            protocol.scalar(reward, jnp.float32, "reward", name),
            done,
            protocol.scalar(cut, bool, "truncated", name),
            protocol.weight(info, name),
        )

    return transition
