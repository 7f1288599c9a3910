"""Errors at the earliest moment: plain numbers, what a component reads, and how it is called."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.base import Policy, State, UsageError
from jaxkd.description import keywords, spec
from jaxkd.distributions import num_actions

NOT_TRACED = (
    "calls float(), int(), bool() or `if` on a value that is only known when the program runs. "
    "Keep it an array: jnp.where for branches"
)
_INLINED = ("jit", "pjit", "closed_call", "custom_jvp_call", "checkpoint")


def number(
    name: str, value: Any, *, low: float = -np.inf, high: float = np.inf, above: bool = False
) -> None:
    """Raises unless `value` is a number within [low, high] ((low, high] with `above`), an array, a
    tracer or a schedule, of which no values are looked at, or None, where it is optional.
    """
    if value is None or isinstance(value, jax.Array | np.ndarray) or callable(value):
        return
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        raise UsageError(f"{name} must be a number, an array or a schedule, got {value!r}.")
    if not (low < value if above else low <= value) or value > high:
        left = "(" if above else "["
        raise UsageError(f"{name} must be in {left}{low:g}, {high:g}], got {value:g}.")


def count(name: str, value: Any) -> None:
    """Raises unless `value` is a positive Python int: sizes are static."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise UsageError(f"{name} must be a positive int (sizes are static), got {value!r}.")


def function(name: str, value: Any, signature: str) -> None:
    """Raises unless `value` can be called; `signature` says how it will be, for a person."""
    if not callable(value):
        got = repr(value) if isinstance(value, str) else type(value).__name__
        raise UsageError(f"{name} must be a function {signature}, got {got}.")


def key(value: Any, *, many: bool = False) -> Any:
    """`value`, one key [] (`many`: an array of keys [n]): typed, or of the old kind, uint32 [W].

    Raises:
        UsageError: it is something else, or not one (or one, where many are needed).
    """
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", ())
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not typed and (dtype != np.uint32 or shape[-1:] not in ((2,), (4,))):
        got = type(value).__name__ if dtype is None else f"{dtype} {list(shape)}"
        raise UsageError(
            f"key must be a key, jax.random.key(0) or jaxkd.seeds(0, 1)[0], got {got}."
        )
    shape = shape if typed else shape[:-1]
    if many and not shape:
        raise UsageError("lanes take keys [n], such as jaxkd.seeds(0, n), got one key.")
    if shape and not many:
        raise UsageError(
            f"one key is needed, got keys {list(shape)}. Many seeds of an algorithm are "
            f"run(lanes(algorithm), keys, ...); of anything else, jax.vmap."
        )
    return value


def params(name: str, given: Any, policy: Policy, many: str) -> None:
    """Raises unless `given` has the structure and shapes of the policy's params; the first array
    that differs is named.

    Args:
        many: what to do with those of many seeds.
    """
    if isinstance(given, State):
        raise UsageError(f"{name} are a State. Give state.params.")
    expected = shapes(jax.eval_shape(policy.init, jax.random.key(0)))
    got = shapes(given)
    different = difference(expected, got)
    if not different:
        return
    axis = next(iter(got.values()), ())[:1]
    stacked = {path: (*axis, *shape) for path, shape in expected.items()}
    advice = f" They lead with an axis of {axis[0]}: {many}" if axis and got == stacked else ""
    raise UsageError(f"{name} do not fit the network: {different}.{advice}")


def shapes(tree: Any) -> dict[str, tuple]:
    """The shapes of all arrays, by their path "a/b"."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(p, simple=True, separator="/"): jnp.shape(x) for p, x in leaves}


def difference(expected: dict[str, Any], got: dict[str, Any]) -> str:
    """The first array that differs, in words; "" where none does.

    >>> difference({"w": (2, 3), "b": (3,)}, {"w": (2, 4), "b": (4,)})
    "'w': expected (2, 3), got (2, 4)"
    """
    for name in (*expected, *got):
        wanted, found = expected.get(name, "no such array"), got.get(name, "no such array")
        if wanted != found:
            return f"{name!r}: expected {wanted}, got {found}"
    return ""


def divides(part_name: str, part: int, whole_name: str, whole: int) -> None:
    """Raises unless `part` divides `whole`, naming the nearest values that do."""
    if whole % part == 0:
        return
    small = [n for n in range(1, math.isqrt(whole) + 1) if whole % n == 0]
    valid = sorted({*small, *(whole // n for n in small)})
    near = [max(n for n in valid if n < part), *[n for n in valid if n > part][:1]]
    raise UsageError(
        f"{whole_name} = {whole} is not divisible by {part_name} = {part}; nearest: "
        f"{', '.join(map(str, near))}."
    )


def reads(fn: Callable, **args: Any) -> frozenset[str]:
    """The leaves of `args`, passed by position, on which the result of `fn` depends.

    Backward liveness on the jaxpr. Loops, branches and custom_vjp count as reading all: it may
    over-report, never under-report.

    Returns:
        dotted paths such as "batch.teacher.policy.logits".

    >>> import jax.numpy as jnp
    >>> sorted(reads(lambda a, b: a["x"] + 0 * jnp.zeros_like(b), a={"x": 1.0, "y": 2.0}, b=3.0))
    ['a.x']
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(args)

    def flat(*values):
        given = jax.tree.unflatten(structure, values)  # JAX sorts the keys of a dict
        return fn(*(given[name] for name in args))

    jaxpr = jax.make_jaxpr(flat)(*[leaf for _, leaf in leaves]).jaxpr
    live = _live(jaxpr, [True] * len(jaxpr.outvars))
    return frozenset(
        jax.tree_util.keystr(path, simple=True, separator=".")
        for (path, _), alive in zip(leaves, live, strict=True)
        if alive
    )


def _live(jaxpr: Any, wanted: list[bool]) -> list[bool]:
    live = {v for v, want in zip(jaxpr.outvars, wanted, strict=True) if want and not _literal(v)}
    for eqn in reversed(jaxpr.eqns):
        outs = [v in live for v in eqn.outvars]
        if any(outs):
            inner = (
                eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
                if eqn.primitive.name in _INLINED
                else None
            )
            ins = (
                _live(getattr(inner, "jaxpr", inner), outs)
                if inner is not None
                else [True] * len(eqn.invars)
            )
            live |= {
                v for v, alive in zip(eqn.invars, ins, strict=True) if alive and not _literal(v)
            }
    return [v in live for v in jaxpr.invars]


def _literal(variable: Any) -> bool:
    return hasattr(variable, "val")


def touches(read: frozenset[str], *prefixes: str) -> bool:
    """Whether any path of `read` is one of the prefixes or lies below one."""
    return any(path == p or path.startswith(p + ".") for path in read for p in prefixes)


def field(path: str) -> str:
    """What a path of `reads` is a part of, for a person; what is kept by name, such as a stream's,
    with that name.

    >>> field("batch.teacher.policy.logits"), field("batch.targets.bonus")
    ('batch.teacher', "batch.targets['bonus']")
    """
    first, second, third = (path.split(".") + ["", ""])[:3]
    return (
        f"{first}.{second}[{third!r}]"
        if second in ("targets", "streams", "extra")
        else f"{first}.{second}"
    )


def spaces(obs_spec: Any, action_space: Any) -> tuple[tuple, tuple]:
    """Observation and action specification as plain, hashable values: ((path, shape, dtype), ...)
    and ("discrete", n) or ("box", D).
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(obs_spec)
    obs = tuple(
        (
            jax.tree_util.keystr(p, simple=True, separator="/"),
            tuple(x.shape),
            np.dtype(x.dtype).name,
        )
        for p, x in leaves
    )
    return obs, ("discrete", action_space.n) if hasattr(action_space, "n") else (
        "box",
        *action_space.shape,
    )


def in_words(obs: tuple, action: tuple) -> str:
    """Those values for a person: "obs (4,) float32 and 2 actions"."""
    seen = ", ".join(f"{path + ' ' if path else ''}{shape} {dtype}" for path, shape, dtype in obs)
    return f"obs {seen} and {action[1]} " + (
        "actions" if action[0] == "discrete" else "action dimensions"
    )


def fits(role: str, policy: Any, env: Any) -> None:
    """Raises if the policy cannot act on the environment: both specifications are printed."""
    given = spaces(env.obs_spec, env.action_space)
    obs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), env.obs_spec)
    cause, action = None, ("", 0)
    try:
        key = jax.random.key(0)
        reset = jax.ShapeDtypeStruct((2,), np.float32)
        out = jax.eval_shape(
            lambda obs, reset: policy.step(policy.init(key), policy.initial_carry(2), obs, reset),
            obs,
            reset,
        )[1]
        number = num_actions(out.policy)
        box = "box", jax.tree.leaves(out.policy)[0].shape[-1]
        action = box if number is None else ("discrete", number)
    except UsageError as error:
        raise UsageError(f"{role}: {error} {env.name!r} gives {in_words(*given)}.") from error
    except Exception as error:  # whatever the network's module system raises
        cause = error
    if cause is None and action == given[1]:
        made = keywords(policy)
        while "policy" in made:
            made = keywords(made["policy"])
        if "context" in made:
            episodes_fit(role, made["context"], made["sliding"], env)
        return
    made_for = spec(policy)
    wanted = spaces(made_for.obs_spec, made_for.action_space) if made_for else given
    if wanted != given:
        expected = in_words(*wanted)
    elif cause is None:
        expected = f"{action[1]} actions"
    else:  # made for just this environment: then it is the network that is wrong
        raise UsageError(
            f"{role} fails on {env.name!r}, which gives {in_words(*given)}: {line(cause)}"
        ) from cause
    raise UsageError(
        f"{role} expects {expected}; {env.name!r} gives {in_words(*given)}."
    ) from cause


def episodes_fit(who: str, context: int, sliding: bool, env: Any) -> None:
    """Raises if an episode is longer than a cache of `context` rows that need not slide."""
    longest = getattr(env, "max_steps", None)
    if longest is None or longest <= context or sliding:
        return
    raise UsageError(
        f"{who} has context = {context}, but an episode of {env.name!r} has up to {longest} steps: "
        f"its beginning, such as a prompt, would drop out of the cache. "
        f"Take context={longest}, or sliding=True for a window of the last {context}."
    )


def kind(name: str, value: Any, cls: type, hint: str) -> None:
    """Raises unless `value` is a `cls`."""
    if not isinstance(value, cls):
        raise UsageError(f"{name} must be {hint}, got {type(value).__name__}.")


def traced(name: str, fn: Callable, **args: Any) -> tuple[Any, frozenset[str]]:
    """The shapes that `fn` returns for these arguments, by position, and the leaves it reads.

    Raises:
        UsageError: whatever `fn` raises, with the component's name.
    """
    try:
        return jax.eval_shape(fn, *args.values()), reads(fn, **args)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error
    except jax.errors.ConcretizationTypeError as error:
        raise UsageError(f"{name} {NOT_TRACED}, no float() around a hyperparameter.") from error
    except Exception as error:
        raise UsageError(f"{name} fails on its batch: {line(error)}") from error


def line(error: BaseException) -> str:
    """What an error of others says, on one line that ends: "TypeError: too many values."."""
    text = next(iter(str(error).strip().splitlines()), "")[:300].rstrip(".: ")
    return f"{type(error).__name__}: {text}." if text else f"{type(error).__name__}."
