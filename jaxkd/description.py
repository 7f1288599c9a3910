"""How a record was made: by which factory, with which keywords; shown, written down, made again.

`described` is put on a factory. Its records then know their `Description`, which `show` prints,
`plain` turns into a JSON value and `rebuild` turns back into a record, made by the same factory.
What a JSON value names is looked up, never run as code, see `_found`.
"""

import dataclasses
import inspect
import math
import sys
from collections.abc import Callable
from functools import partial, wraps
from importlib import import_module
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxkd.base import UsageError

P = ParamSpec("P")
R = TypeVar("R")

_PUBLIC = ("jax.nn", "jax.numpy", "flax.linen")  # where functions are looked up by their name
_FILES = {"load", "save", "savez", "fromfile", "frompyfunc"}  # of jax.numpy: not for a file to name


class Spec(NamedTuple):
    """What a network must know of an environment; `Env` has the same fields."""

    obs_spec: Any  # ShapeDtypeStruct of one observation (a pytree)
    action_space: Any  # Discrete | Box
    tasks: tuple[str, ...] = ()  # names of the tasks of `envs.concat`


class Description(NamedTuple):
    """A factory's importable name and all its keywords; equal where the record is the same."""

    factory: str  # "module:qualname"
    keywords: tuple  # (name, value as it was given), ..., defaults included

    def __eq__(self, other):
        return isinstance(other, Description) and _comparable(self) == _comparable(other)

    def __ne__(self, other):
        return not self == other

    def __hash__(self):
        # values may be lists or arrays, which have no hash
        return hash((self.factory, tuple(name for name, _ in self.keywords)))


def described(factory: Callable[P, R]) -> Callable[P, R]:
    """`factory`, whose results carry their `Description`: records of `base.py`, or functions.

    Of nested factories the outermost is described, the others are among its keywords or inside it.

    >>> from jaxkd.base import Behavior
    >>> @described
    ... def always(action):
    ...     return Behavior(lambda key, student, teacher, context: action)
    >>> show(always(2))
    'always(action=2)'
    """
    signature = inspect.signature(factory)
    name = f"{factory.__module__}:{factory.__qualname__}"

    @wraps(factory)
    def describing(*args: P.args, **kwargs: P.kwargs) -> R:
        made: Any = factory(*args, **kwargs)
        description = Description(name, _keywords(signature, args, kwargs))
        if not isinstance(made, FunctionType):
            return made._replace(description=description)
        made.__dict__["description"] = description
        return cast(R, made)

    describing.__dict__["describes"] = True  # what `rebuild` may call
    return describing


def of(value: Any) -> Description | None:
    """The Description of a record or function; None where it has none."""
    if isinstance(value, Description):
        return value
    found = getattr(value, "description", None)
    return found if isinstance(found, Description) else None


def name(value: Any) -> str:
    """The name of a record's factory: "mlp"; "" without a description."""
    description = of(value)
    return description.factory.split(":")[1] if description else ""


def keywords(value: Any) -> dict[str, Any]:
    """A record's keywords by name, as they were given; {} without a description."""
    description = of(value)
    return dict(description.keywords) if description else {}


def spec(value: Any) -> Spec | None:
    """Of a policy: the specification it was made for, where a description says it."""
    given = keywords(value)
    if "env" in given:
        return _spec(given["env"])
    # a field of an observation says nothing about the others
    return spec(given["policy"]) if "policy" in given and name(value) != "select" else None


def _keywords(signature: inspect.Signature, args: tuple, kwargs: dict) -> tuple:
    """All arguments by name, `**keywords` flattened."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    given: dict[str, Any] = {}
    for key, value in bound.arguments.items():
        flat = signature.parameters[key].kind is inspect.Parameter.VAR_KEYWORD
        given |= value if flat else {key: value}
    return tuple(given.items())


def _spec(env: Any) -> Spec:
    return Spec(env.obs_spec, env.action_space, tuple(getattr(env, "tasks", ())))


def _is_env(value: Any) -> bool:
    return hasattr(value, "obs_spec") and hasattr(value, "action_space")


def _is_record(value: Any) -> bool:
    """Whether `value` is a NamedTuple or an instance of a dataclass, such as a flax module."""
    return not isinstance(value, type) and _holds_fields(type(value))


def _fields(record: Any) -> dict[str, Any]:
    """The fields of a record that are not as they are by default."""
    if isinstance(record, tuple):
        named: Any = record
        given, defaults = named._asdict(), named._field_defaults
    else:
        fields = [field for field in dataclasses.fields(record) if field.init]
        # a flax module's parent is set by flax, also where there is none
        given = {f.name: getattr(record, f.name) for f in fields if f.name != "parent"}
        defaults = {f.name: f.default for f in fields}
    return {k: v for k, v in given.items() if k not in defaults or not _same(v, defaults[k])}


def _same(a: Any, b: Any) -> bool:
    return a is b or _comparable(a) == _comparable(b)


def _comparable(value: Any) -> Any:
    """A value whose == says whether two keywords mean the same; what JSON makes equal is equal."""
    description = of(value)
    if description:
        pairs = {key: _comparable(given) for key, given in description.keywords}
        return "description", description.factory, pairs
    if isinstance(value, bool | str | type(None)):
        return type(value), value  # 1 is not True
    if _is_env(value):
        return "spec", *map(_comparable, _spec(value))
    if isinstance(value, jax.ShapeDtypeStruct):
        return "array", value.shape, value.dtype
    if isinstance(value, Tracer):
        return "traced", id(value)
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return np.asarray(value).tolist() if _is_numeric(value) else ("key", id(value))
    if isinstance(value, dict):
        return {key: _comparable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        kind = type(value) if hasattr(value, "_fields") else tuple  # JSON has lists only
        return kind, *map(_comparable, value)
    if _is_record(value):
        parts = {key: _comparable(part) for key, part in _fields(value).items()}
        return type(value), parts
    dtype = _dtype(value)
    return value if dtype is None else ("dtype", dtype)


def _is_numeric(array: Any) -> bool:
    """False for arrays of PRNG keys and of Python objects."""
    return jnp.issubdtype(array.dtype, jnp.number) or jnp.issubdtype(array.dtype, jnp.bool_)


def _dtype(value: Any) -> str | None:
    """The name of a dtype, or of a scalar type such as `jnp.float32`; None for anything else."""
    scalar = isinstance(value, type) and issubclass(value, np.generic)
    if isinstance(value, np.dtype) or scalar or isinstance(value, type(jnp.float32)):
        return jnp.dtype(value).name
    return None


# --- for a person ------------------------------------------------------------------------------


def show(value: Any) -> str:
    """How a record was made, with the keywords that are not its factory's defaults.

    >>> from jaxkd.losses import forward_kl, scale
    >>> show(scale(0.5, forward_kl(2.0))), show((0.5, None))          # doctest: +SKIP
    ('scale(value=0.5, term=forward_kl(temperature=2.0))', '(0.5, None)')
    """
    if description := of(value):
        return _call(description.factory, _chosen(description))
    if isinstance(value, Tracer):
        return "traced"
    if _is_env(value):
        return getattr(value, "name", "") or type(value).__name__
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        is_number = not value.shape and _is_numeric(value)
        return repr(value.item()) if is_number else f"{value.dtype}{list(value.shape)}"
    if isinstance(value, jax.ShapeDtypeStruct):
        return f"{value.dtype}{list(value.shape)}"
    if _is_record(value):
        return _show_record(value)
    if isinstance(value, list | tuple):
        return f"({', '.join(map(show, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {show(part)}' for key, part in value.items())}}}"
    if isinstance(value, partial):
        return f"partial({show(value.func)})"
    return _dtype(value) or (_own_name(value) if callable(value) else repr(value))


def _show_record(value: Any) -> str:
    fields, defaults = getattr(value, "_fields", ()), getattr(value, "_field_defaults", {})
    required = [field for field in fields if field not in defaults]
    main = getattr(value, required[-1]) if required else None
    if callable(main) and not isinstance(main, type):
        return show(main)  # a record by hand, LossTerm(init, loss): what its user has named is loss
    return _call(type(value).__name__, _fields(value))


def _chosen(description: Description) -> dict[str, Any]:
    """The keywords that are not the factory's defaults; all of them where it is not found."""
    try:
        parameters = inspect.signature(_look_up(description.factory)).parameters
    except (UsageError, AttributeError):
        parameters = {}
    defaults = {key: parameter.default for key, parameter in parameters.items()}
    return {k: v for k, v in description.keywords if k not in defaults or not _same(v, defaults[k])}


def _call(factory: str, given: dict[str, Any]) -> str:
    said = ", ".join(f"{key}={show(value)}" for key, value in given.items())
    short = factory.split(":")[-1].replace("<locals>.", "")
    return f"{short}({said})" if said else short


def _own_name(function: Any) -> str:
    """A function's name; of one made inside another "outer.inner"."""
    qualname = getattr(function, "__qualname__", type(function).__name__)
    return qualname.replace("<locals>.", "").replace("<lambda>", "lambda")


# --- for a file --------------------------------------------------------------------------------


def plain(value: Any, where: str = "") -> Any:
    """A JSON value of a description, or of anything that a keyword may be.

    Args:
        value: descriptions and records that have one, environments (as `Spec`), numbers, strings,
            None, bools, tuples, lists, dicts, dtypes, ShapeDtypeStructs, NamedTuples, dataclasses
            (flax modules), and functions and classes that can be imported by name.
        where: the keyword it is, for the message.

    Raises:
        UsageError: for a lambda, a local function, functools.partial, a bound method, an array.

    >>> plain(jax.nn.relu), plain((1, None)), plain(jnp.float32)
    ({'function': 'jax.nn:relu'}, [1, None], {'dtype': 'float32'})
    """
    if description := of(value):
        return _plain_description(description, where)
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        value = _number(value, where)
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}  # not JSON's business
    if isinstance(value, jax.ShapeDtypeStruct):
        return {"shape": list(value.shape), "dtype": np.dtype(value.dtype).name}
    if _is_env(value) and not isinstance(value, Spec):
        return plain(_spec(value), where)
    if (dtype := _dtype(value)) is not None:
        return {"dtype": dtype}
    if _is_record(value):
        parts = {k: plain(v, f"{where}.{k}".strip(".")) for k, v in _fields(value).items()}
        return {"record": _importable(type(value), where), "fields": parts}
    if isinstance(value, list | tuple):
        parts = [plain(part, where) for part in value]
        return {"list": parts} if isinstance(value, list) else parts  # pytrees tell them apart
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: plain(part, where) for key, part in value.items()}}
    return {"function": _importable(value, where)}


def _plain_description(description: Description, where: str) -> dict[str, Any]:
    factory = description.factory
    short = factory.split(":")[1]
    if "<locals>" in factory:
        raise UsageError(
            f"{_said(where)}{short.split('.')[-1]} is made by a function inside another one, so a "
            f"file cannot name it. Define it at the top of a module."
        )
    given = {key: plain(value, f"{short}({key}=...)") for key, value in description.keywords}
    return {"factory": _public(factory), "keywords": given}


def _public(path: str) -> str:
    """A path by the package that shows it: "jaxkd.networks.mlp:mlp" -> "jaxkd.networks:mlp"."""
    module, _, qualname = path.partition(":")
    package = module.rpartition(".")[0]
    if module.split(".")[0] != "jaxkd" or not hasattr(sys.modules.get(package), qualname):
        return path
    shorter = f"{package}:{qualname}"
    return shorter if _look_up(shorter) is _look_up(path) else path


def _number(value: Any, where: str) -> Any:
    if isinstance(value, Tracer) or value.shape or not _is_numeric(value):
        raise UsageError(
            f"{_said(where)}an array or a traced value cannot be part of a description in a file. "
            f"Give a Python number or a tuple of them, or keep it among the params."
        )
    return value.item()


def _said(where: str) -> str:
    return f"{where}: " if where else ""


def _importable(value: Any, where: str) -> str:
    """ "module:qualname" of a function or class, which leads back to this very object."""
    advice = (
        f"{_said(where)}{show(value)} has no importable name, so it cannot be saved by name. "
        f"Give a function or class that is defined at the top of a module (no lambda, no local "
        f"function, no functools.partial, no bound method)."
    )
    if isinstance(value, partial | MethodType | ModuleType) or not callable(value):
        raise UsageError(advice)
    short = getattr(value, "__name__", "")
    for module in _PUBLIC:  # theirs live in private modules, which may move
        if getattr(sys.modules.get(module), short or "-", None) is value:
            return f"{module}:{short}"
    module = getattr(value, "__module__", None)
    full = f"{module}:{getattr(value, '__qualname__', '<')}"
    try:
        if "<" not in full and _found(full) is value:
            return _public(full)
    except UsageError as error:
        raise UsageError(f"{advice} ({error})") from error
    raise UsageError(advice)


def rebuild(value: Any) -> Any:
    """What `plain` was given, made again: the record of a description, by a call of its factory.

    Raises:
        UsageError: where it names what may not be named, is not imported, or is not there.

    >>> rebuild(plain(jnp.tanh)) is jnp.tanh, rebuild([1, {"dtype": "bfloat16"}])
    (True, (1, dtype(bfloat16)))
    """
    if isinstance(value, list):
        return tuple(map(rebuild, value))
    if not isinstance(value, dict):
        return value
    match value:
        case {"factory": str(factory), "keywords": dict(given)}:
            return _made(factory, {key: rebuild(part) for key, part in given.items()})
        case {"record": str(cls), "fields": dict(given)}:
            found = _found(cls)
            if not isinstance(found, type) or not _holds_fields(found):
                raise UsageError(f"{cls!r} is no NamedTuple and no dataclass")
            return found(**{key: rebuild(part) for key, part in given.items()})
        case {"shape": list(shape), "dtype": str(dtype)}:
            return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
        case {"dtype": str(dtype)}:
            return jnp.dtype(dtype)
        case {"list": list(parts)}:
            return list(map(rebuild, parts))
        case {"dict": dict(parts)}:
            return {key: rebuild(part) for key, part in parts.items()}
        case {"float": "inf" | "-inf" | "nan" as number}:
            return float(number)
        case {"function": str(function)}:
            return _found(function)
    raise UsageError(f"{str(value)[:80]} is no value of a description")


def _holds_fields(cls: type) -> bool:
    return dataclasses.is_dataclass(cls) or (issubclass(cls, tuple) and hasattr(cls, "_fields"))


def _made(factory: str, given: dict[str, Any]) -> Any:
    """The record of a factory; only those that are `described` are ever called."""
    found = _found(factory)
    if not getattr(found, "describes", False):
        raise UsageError(f"{factory!r} is no factory of described records")
    signature = inspect.signature(found)
    arguments, further = {}, {}
    for key, value in given.items():
        (arguments if key in signature.parameters else further)[key] = value
    for key, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments[key], further = further, {}
    if further:
        raise UsageError(f"{factory!r} has no keyword {next(iter(further))!r}")
    bound = inspect.BoundArguments(signature, arguments)  # type: ignore[arg-type]
    return found(*bound.args, **bound.kwargs)


def _found(path: str) -> Any:
    """The function or class "module:qualname".

    Of jaxkd: what is defined there. Of jax.nn, jax.numpy and flax.linen: their public names. Of
    anybody else's module: what is defined there, if the module is imported already (importing it
    would run its code) and is not part of Python itself.
    """
    module, _, qualname = path.partition(":")
    root = module.split(".")[0]
    if module in _PUBLIC:
        found = None if qualname in _FILES else getattr(import_module(module), qualname, None)
        if isinstance(found, ModuleType) or not callable(found):
            raise UsageError(f"{module} has no {qualname!r}")
        return found
    if root in sys.stdlib_module_names and root != "__main__":
        raise UsageError(f"{path!r} is a part of Python, which a description does not name")
    if root != "jaxkd" and module not in sys.modules:
        raise UsageError(f"it needs {qualname!r} of {module!r}: import {module} first, then load")
    found = _look_up(path)
    own = str(getattr(found, "__module__", None))
    # files name what is public by its package, "jaxkd.networks:mlp", so that modules may move
    at_home = own == module or (root == "jaxkd" and own.startswith(f"{module}."))
    same_name = getattr(found, "__qualname__", None) == qualname
    if not at_home or not same_name or isinstance(found, BuiltinFunctionType):
        raise UsageError(f"{qualname!r} of {module!r} is not defined there")
    return found


def _look_up(path: str) -> Any:
    module, _, qualname = path.partition(":")
    try:
        found: Any = sys.modules.get(module) or import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"there is no {qualname!r} in {module!r}") from error
    return found
