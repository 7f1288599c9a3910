"""`check_env`: what is wrong with an environment, found before anything is trained in it.

Every check is a generator of `Fault`s. They look at the environment itself, not at the batch that
`make` builds of it: `make` mends some of what they find, and other libraries do not.
"""

import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.errors import KeyReuseError

from jaxkd import check
from jaxkd.base import Discrete, UsageError
from jaxkd.envs import protocol
from jaxkd.envs.gymnax import actions, beginning, construct, has_own_step, make
from jaxkd.envs.limits import time_limit
from jaxkd.envs.playing import Fault, Subject, ends, finite, moves, observation_space, played


def check_env(
    id_or_environment: Any,
    *,
    env_params: Any = None,
    num_steps: int = 256,
    num_envs: int = 16,
    seed: int = 0,
    **env_kwargs: Any,
) -> tuple[Fault, ...]:
    """What is wrong with an environment: shapes, dtypes and weak types, the limits of its spaces,
    purity under jit and vmap, keys used, ends and time limits apart, numbers that are finite.

    Args:
        id_or_environment, env_params, env_kwargs: as for `envs.make`.
        num_steps, num_envs: of random play, in which what depends on numbers is looked for.
        seed: of the play.

    Returns:
        Fault(name, cause, fix, grave), none where all is well; grave ones first.

    Raises:
        UsageError: an unknown name, or an argument that it does not take.

    >>> [fault.name for fault in check_env("CartPole-v1", num_steps=8)]  # its clock: not grave
    ['weak type']
    """
    check.count("num_steps", num_steps)
    check.count("num_envs", num_envs)
    found = _checked(id_or_environment, env_params, env_kwargs, (num_steps, num_envs), seed)
    return tuple(sorted(dict.fromkeys(found), key=lambda fault: not fault.grave))


def _checked(made_of, env_params, env_kwargs, size, seed) -> Iterator[Fault]:
    if isinstance(made_of, str):
        construct(made_of, env_params, env_kwargs)  # an unknown name is no fault of an environment
    known = vars(made_of).copy() if hasattr(made_of, "__dict__") else {}
    try:
        make(made_of, 2, env_params=env_params, **env_kwargs)
        subject = _subject(made_of, env_params, env_kwargs, size)
        play = played(subject, jax.random.key(seed))
    except UsageError as error:
        yield Fault("interface", str(error), "As it says; nothing else was looked at.")
    except Exception as error:
        cause = f"it raises {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        yield Fault("raises", cause, "Call reset_env and step_env by hand under jax.jit.")
    else:
        key = jax.random.key(seed)
        impure = list(_purity(subject, key))
        yield from impure
        for one in (_keys, _types, _spaces, _starts, *(() if impure else (_alone,))):
            yield from one(subject, key)
        for one in (finite, ends, moves):
            yield from one(subject, play)
    yield from _kept(made_of, known)


def _subject(made_of, env_params, env_kwargs, size) -> Subject:
    environment, params, name = construct(made_of, env_params, env_kwargs)
    space, to_action = actions(environment, params, name)
    own = has_own_step(environment)
    first = beginning(environment, params, own, name)
    like = jax.eval_shape(lambda: first(jax.random.key(0)))
    limit = time_limit(environment, params, like.env_state, None, name).max_steps

    def begin(key):
        with protocol.settings(environment):
            return (environment.reset if own else environment.reset_env)(key, params)

    def advance(key, state, action):
        with protocol.settings(environment):
            if own:
                _, state, reward, done, _, info = environment.step(key, state, action, params)
                return info["final_observation"], state, reward, done
            return environment.step_env(key, state, action, params)[:4]

    def truncated(state):
        if not hasattr(environment, "is_truncated") or own:
            return jnp.asarray(False)
        with protocol.settings(environment):
            return jnp.asarray(environment.is_truncated(state, params), bool)

    def act(key):
        if isinstance(space, Discrete):
            return jax.random.randint(key, (), 0, space.n)
        return to_action(jax.random.uniform(key, space.shape, minval=-1.0, maxval=1.0))

    return Subject(environment, params, name, begin, advance, truncated, act, limit, size)


# --- of the functions ----------------------------------------------------------------------------


def _purity(subject: Subject, key: jax.Array) -> Iterator[Fault]:
    """Traced twice, each method is the same program; what it was given is as before."""
    state, action = (_types_of(call, key) for call in (lambda k: subject.begin(k)[1], subject.act))
    mutated = []

    def advance(key, state, action):
        before = jax.tree.leaves(state)
        ended = subject.advance(key, state, action)
        after = jax.tree.leaves(state)
        mutated.append(len(before) != len(after) or any(map(operator.is_not, before, after)))
        return ended

    for method, call, args in (
        ("reset_env", subject.begin, (key,)),
        ("step_env", advance, (key, state, action)),
    ):
        if _program(call, *args) != _program(call, *args):
            yield Fault(
                "purity",
                f"{method} of {subject.name!r} is another program when it is traced again",
                "Draw from the key that is given (jax.random), and keep nothing outside the state: "
                "under jit it runs once, when it is traced.",
            )
    if any(mutated):
        yield Fault(
            "mutation",
            f"step_env of {subject.name!r} changes the state that it is given",
            "Return a new state: state.replace(...), array.at[i].set(x).",
        )


def _program(call: Callable, *args: Any) -> tuple[str, list]:
    """What is traced of `call`, with the numbers that stand in it."""
    closed = jax.make_jaxpr(lambda *args: call(*args))(*args)
    numbers = [np.asarray(_data(x)).tolist() for x in closed.consts]
    return re.sub(r"0x[0-9a-f]+", "", str(closed.jaxpr)), numbers


def _keys(subject: Subject, key: jax.Array) -> Iterator[Fault]:
    """No key is drawn from twice."""
    state, action = subject.begin(key)[1], subject.act(key)
    for method, call in (
        ("reset_env", lambda key: _data(subject.begin(key))),
        ("step_env", lambda key: _data(subject.advance(key, state, action))),
    ):
        try:
            with jax.debug_key_reuse(True):
                jax.jit(call)(jax.random.clone(key))
        except KeyReuseError as error:
            yield Fault(
                "key reuse",
                f"{method} of {subject.name!r} uses a key twice ({str(error).splitlines()[0]})",
                "jax.random.split it first: numbers drawn from one key are not independent.",
            )


def _types(subject: Subject, key: jax.Array) -> Iterator[Fault]:
    """Reset and step give the same dtypes, and none that depends on what it meets."""
    first = _types_of(subject.begin, key)
    strong = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), first[1])
    action = _types_of(subject.act, key)
    after = _types_of(lambda *args: subject.advance(*args)[:2], key, strong, action)
    weak = []
    for what, old, new in zip(("obs", "state"), first, after, strict=True):
        leaves = jax.tree_util.tree_flatten_with_path(old)[0]
        for (path, a), b in zip(leaves, jax.tree.leaves(new), strict=False):
            where = f"{what}{jax.tree_util.keystr(path)}"
            if a.dtype != b.dtype:
                yield Fault(
                    "dtype",
                    f"{where} of {subject.name!r} is {a.dtype} after a reset, {b.dtype} after a "
                    f"step",
                    f"jnp.asarray(..., jnp.{b.dtype}) in reset_env. jaxkd casts it where it can.",
                )
            elif a.weak_type:
                weak.append(where)
    if weak:
        yield Fault(
            "weak type",
            f"after a reset of {subject.name!r} these have the type of a Python number, which "
            f"depends on what it meets: {', '.join(weak)}",
            "jnp.asarray(0, jnp.int32) in reset_env: a scan wants one type. jaxkd casts it.",
            grave=False,
        )


def _spaces(subject: Subject, key: jax.Array) -> Iterator[Fault]:
    """The observation is what observation_space says; `finite` looks at its bounds."""
    if (space := observation_space(subject)) is None:
        yield Fault(
            "space",
            f"{subject.name!r} has no observation_space(params)",
            "jaxkd needs none; others do, and without one bounds are not looked at.",
            grave=False,
        )
        return
    obs = _types_of(subject.begin, key)[0]
    if not hasattr(obs, "shape") or not hasattr(space, "shape"):
        return  # of several parts
    if tuple(space.shape) != tuple(obs.shape):
        yield Fault(
            "space",
            f"observations of {subject.name!r} have shape {obs.shape}, its observation_space says "
            f"{tuple(space.shape)}",
            "Let both say the same; jaxkd believes the observation.",
        )
    kinds = [jnp.issubdtype(jnp.dtype(dtype), jnp.floating) for dtype in (obs.dtype, space.dtype)]
    if kinds[0] != kinds[1]:
        yield Fault(
            "space",
            f"observations of {subject.name!r} are {obs.dtype}, its observation_space says "
            f"{jnp.dtype(space.dtype)}",
            "Let both say the same; jaxkd believes the observation.",
            grave=False,
        )


def _starts(subject: Subject, key: jax.Array) -> Iterator[Fault]:
    """Two keys, two beginnings."""
    a, b = (_data(subject.begin(k)) for k in jax.random.split(key))
    if _equal(a, b):
        yield Fault(
            "one start",
            f"every episode of {subject.name!r} begins in the same state",
            "Draw it from the key, unless it is meant.",
            grave=False,
        )


def _alone(subject: Subject, key: jax.Array) -> Iterator[Fault]:
    """Each of a batch is what it is alone."""
    keys = jax.random.split(key, 3)

    def two_steps(key):
        state = subject.begin(key)[1]
        for k in jax.random.split(key):
            obs, state, reward, done = subject.advance(k, state, subject.act(k))
        return _data((obs, state, reward, done))

    together, alone = jax.jit(jax.vmap(two_steps))(keys), jax.jit(two_steps)
    for i, key in enumerate(keys):
        if not _equal(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone(key), 1e-3):
            yield Fault(
                "vmap",
                f"one of three environments of {subject.name!r} under vmap goes another way than "
                f"alone",
                "Write it for ONE environment, with jnp and lax alone.",
            )
            return


def _kept(environment: Any, before: dict) -> Iterator[Fault]:
    """The object is what it was."""
    after = vars(environment) if hasattr(environment, "__dict__") else {}
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) is after.get(name):
            continue
        leaked = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(after.get(name)))
        yield Fault(
            "leak" if leaked else "kept state",
            f"attribute {name!r} of {type(environment).__name__!r} is "
            f"{'a tracer' if leaked else 'another'} after it was played",
            "Put what changes into the state: under jit a method runs once, when it is traced.",
        )


# --- helpers -------------------------------------------------------------------------------------


def _types_of(call: Callable, *args: Any) -> Any:
    return jax.eval_shape(lambda *args: call(*args), *args)  # a new function: nothing is cached


def _data(tree):
    """`tree` with keys as their numbers."""
    raw = lambda leaf: (
        jax.random.key_data(leaf)
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
        else leaf
    )
    return jax.tree.map(raw, tree)


def _equal(a, b, rtol: float = 0.0) -> bool:
    close = lambda x, y: (
        np.shape(x) == np.shape(y)
        and np.allclose(np.asarray(x), np.asarray(y), rtol=rtol, atol=rtol, equal_nan=True)
    )
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        map(close, jax.tree.leaves(a), jax.tree.leaves(b))
    )
