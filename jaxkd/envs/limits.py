"""Time limits of environments: where they stand, which end is which, and how far cuts lie apart."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxkd import check
from jaxkd.base import UsageError
from jaxkd.envs import protocol

# The field of the parameters that holds a time limit, and the field of the state that is compared
# with it (gymnax; Craftax).
_CLOCKS = {"max_steps_in_episode": "time", "max_timesteps": "timestep"}


class Limit(NamedTuple):
    """What is known about the time limit."""

    max_steps: int | None
    counted: bool  # the adapter counts the steps and cuts
    field: str | None  # the parameter in which the environment reads its limit


def fields(params: Any) -> tuple[str, ...]:
    """Names of the parameters; none where they are no dataclass."""
    found = dataclasses.fields(params) if dataclasses.is_dataclass(params) else ()
    return tuple(field.name for field in found)


def with_limit(params: Any, max_steps: int | None) -> Any:
    """The parameters with `max_steps` where they hold a time limit."""
    if max_steps is not None:
        old = {name: getattr(params, name) for name in _CLOCKS if name in fields(params)}
        new = {
            name: float(max_steps) if isinstance(value, float) else int(max_steps)
            for name, value in old.items()
        }
        params = dataclasses.replace(params, **new) if new else params
    return params


def time_limit(environment, params, inner, max_steps, name):
    """-> Limit; `inner` is the state's structure."""
    clocks = [field for field in _CLOCKS if hasattr(params, field)]
    modern = hasattr(environment, "is_truncated")
    readable = [field for field in clocks if modern or hasattr(inner, _CLOCKS[field])]
    field = next(iter(readable or clocks), None)
    if not readable or field is None:
        if max_steps is None and not modern:
            warnings.warn(
                f"{name!r} has no is_truncated and shows no time limit, so every end counts as a "
                f"termination; max_steps= sets a limit",
                stacklevel=3,
            )
        return Limit(None if max_steps is None else int(max_steps), max_steps is not None, field)
    if max_steps is None:
        value = getattr(params, field)
        if isinstance(value, Tracer):
            raise UsageError(
                f"{field} of {name!r} is traced, but the time limit must be known before "
                f"compilation: give max_steps="
            )
        max_steps = int(value)
    return Limit(int(max_steps), False, field)


def ends(environment, params, inner, done, time, limit):
    """-> (terminated, truncated), bool []; a termination on the last step is a termination."""
    at_limit = jnp.asarray(time >= limit.max_steps if limit.counted else False)
    if hasattr(environment, "is_truncated"):
        truncated = jnp.logical_or(environment.is_truncated(inner, params), at_limit)
        return done, jnp.logical_and(truncated, jnp.logical_not(done))
    if limit.field is None or limit.max_steps is None:
        return done, jnp.logical_and(at_limit, jnp.logical_not(done))
    if not limit.counted:
        at_limit = jnp.logical_and(
            done, getattr(inner, _CLOCKS[limit.field]) >= getattr(params, limit.field)
        )
    # An environment that reads the limit itself reports it as `done`, and which of the two it was
    # cannot be told.
    return jnp.logical_and(done, jnp.logical_not(at_limit)), at_limit


# --- how far cuts lie apart ---------------------------------------------------------------------

_HORIZON = 2**14  # steps that are looked at where no limit is known


def cut_steps(environment: Any, params: Any, limit: Limit, begin: Callable, advance: Callable):
    """The least number of steps between two cuts of one environment, or None where it is unknown.

    gymnax's own clock begins at 0 and cuts at the limit, and so does the adapter's. Any other is
    followed: what its cuts depend on must be a clock, which no key, action or other part of the
    state moves, and which always begins alike; then the first step at which it cuts is computed.

    Args:
        begin: key -> (state, an action), of one environment.
        advance: (key, state, action) -> state, without a reset.
    """
    modern = hasattr(environment, "is_truncated")
    if limit.max_steps is not None and (
        _gymnax_clock(environment) or (limit.counted and not modern)
    ):
        return limit.max_steps
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(params)):
        return None

    def may_cut(state):
        if modern:
            return jnp.asarray(environment.is_truncated(state, params))
        if limit.field is None or limit.max_steps is None:
            return jnp.asarray(False)
        return getattr(state, _CLOCKS[limit.field]) >= getattr(params, limit.field)

    horizon = limit.max_steps or _HORIZON
    with protocol.settings(environment), jax.ensure_compile_time_eval():
        first = _first_cut(begin, advance, may_cut, horizon)
    return first if first is None or not limit.counted else min(first, horizon)


def _gymnax_clock(environment: Any) -> bool:
    """Whether it is gymnax's or of ours, with the limit of their base class; imports no gymnax."""
    if not type(environment).__module__.startswith(("gymnax.", "jaxkd.envs.")):
        return False
    for base in type(environment).__mro__:
        if (base.__module__, base.__name__) == ("gymnax.environments.environment", "Environment"):
            return type(environment).is_truncated is base.is_truncated
    return False


def _first_cut(begin: Callable, advance: Callable, may_cut: Callable, horizon: int) -> int | None:
    """The first step at which `may_cut`, at most `horizon`; None where no clock decides it."""
    key = jax.random.key(0)
    state, action = begin(key)
    leaves, structure = jax.tree.flatten(state)
    clock = _clock(begin, advance, may_cut)
    if clock is None:
        return None

    def with_clock(ticking):
        return structure.unflatten([ticking.get(i, leaf) for i, leaf in enumerate(leaves)])

    def step(ticking, _):
        after = jax.tree.leaves(advance(key, with_clock(ticking), action))
        ticking = {i: after[i] for i in clock}
        return ticking, may_cut(with_clock(ticking))

    begins = {i: leaves[i] for i in clock}
    cuts = jax.jit(lambda begins: jax.lax.scan(step, begins, None, horizon)[1])(begins)
    return int(jnp.argmax(cuts)) + 1 if bool(cuts.any()) else horizon


def _clock(begin: Callable, advance: Callable, may_cut: Callable) -> list[int] | None:
    """The leaves of the state on which cuts depend, now and later; None where more than a clock."""
    key = jax.random.key(0)
    state, action = begin(key)
    number = len(jax.tree.leaves(state))
    leaf = lambda path: int(path.split(".")[1])  # of "leaves.3"
    structure = jax.tree.structure(state)

    def follow(read_by):
        """The arguments of one step on which these leaves of the next state depend."""

        def chosen(key, action, leaves):
            after = jax.tree.leaves(advance(key, structure.unflatten(leaves), action))
            return [after[i] for i in sorted(read_by)]

        return check.reads(chosen, key=key, action=action, leaves=jax.tree.leaves(state))

    decide = lambda leaves: may_cut(structure.unflatten(leaves))
    found = {leaf(path) for path in check.reads(decide, leaves=jax.tree.leaves(state))}
    for _ in range(number + 1):
        paths = follow(found)
        if any(not path.startswith("leaves") for path in paths):
            return None
        more = found | {leaf(path) for path in paths}
        if more == found:
            break
        found = more
    first = lambda key: [jax.tree.leaves(begin(key)[0])[i] for i in sorted(found)]
    return None if check.reads(first, key=key) else sorted(found)
