"""How an environment's own code is called, and what it must give back.

It is other people's code: it is traced under the settings that it was written for, and what it
returns is looked at before anything is compiled.
"""

import contextlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.base import UsageError
from jaxkd.check import NOT_TRACED

_NUMBERS = bool | int | float | np.generic | np.ndarray | jax.Array
RESET = ("obs", "state")
STEP = ("obs", "state", "reward", "done", "info")
OWN_STEP = ("obs", "state", "reward", "terminated", "truncated", "info")


@contextlib.contextmanager
def settings(environment: Any):
    """The settings of jax for the code of an environment, or of the module gymnax.

    gymnax mixes ints and floats, and arrays of different rank, which a user may have forbidden for
    code of his own; in 64-bit mode four of its environments choose between numbers of 32 and 64
    bits. An environment of one's own has 64 bits then.
    """
    is_module = isinstance(environment, ModuleType)
    home = environment.__name__ if is_module else type(environment).__module__
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        if home.split(".")[0] in ("gymnax", "jaxkd"):
            stack.enter_context(jax.enable_x64(False))
        yield


def given(environment: Any, params: Any) -> Callable[[Callable], Callable[..., Any]]:
    """Decorates a function (params, *args) -> into one of (*args), with the parameters as arguments
    of a jit of its own.

    That is how gymnax gets them. Closed over, Python's doubles would meet before float32 does, and
    XLA would fuse, and so round, otherwise.
    """
    leaves, structure = jax.tree.flatten(params)
    numbers = {
        i: leaf
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, int | float | np.ndarray | jax.Array)
    }

    def decorate(function):
        @jax.jit
        def with_numbers(numbers, *args):
            return function(
                structure.unflatten([numbers.get(i, leaf) for i, leaf in enumerate(leaves)]), *args
            )

        def call(*args):
            try:
                with settings(environment):
                    return with_numbers(numbers, *args)
            except jax.errors.ConcretizationTypeError as error:
                name = getattr(environment, "name", type(environment).__name__)
                raise UsageError(f"{function.__name__} of {name!r} {NOT_TRACED}.") from error

        return call

    return decorate


# --- what it gives back --------------------------------------------------------------------------


def values(returned: Any, names: tuple[str, ...], method: str, name: str) -> Any:
    """`returned`, which is as many values as `names`, observation and state of arrays.

    Raises:
        UsageError: it is not.
    """
    number = len(returned) if isinstance(returned, tuple | list) else 1
    if number != len(names):
        raise UsageError(
            f"{method} of {name!r} gives {number} values, but must give {len(names)}: "
            f"{', '.join(names)}. (A time limit belongs into is_truncated, or max_steps=.)"
        )
    for what, tree in zip(names[:2], returned, strict=False):
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            if not isinstance(leaf, _NUMBERS):
                where = "/".join([what, jax.tree_util.keystr(path, simple=True, separator="/")])
                raise UsageError(
                    f"{where.rstrip('/')} of {name!r} is a {type(leaf).__name__} in {method}: only "
                    f"arrays and numbers can be in it. Keep the rest in the environment itself."
                )
    return returned


def cast(tree: Any, like: Any, name: str) -> Any:
    """`tree`, a record of obs and state, with the dtypes that a reset gives, none of them weak.

    Raises:
        UsageError: it has another structure, other shapes, or a cast would round off.
    """
    for field in like._fields:
        _check_structure(getattr(tree, field), getattr(like, field), f"{field} of {name!r}")

    def one(path, leaf, wanted):
        where = f"{jax.tree_util.keystr(path, simple=True, separator='.')} of {name!r}"
        if jnp.shape(leaf) != wanted.shape:
            raise UsageError(
                f"{where} has shape {wanted.shape} after a reset, {jnp.shape(leaf)} after a step: "
                f"let reset_env and step_env return the same"
            )
        if jnp.issubdtype(wanted.dtype, jax.dtypes.prng_key):
            return leaf
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(wanted.dtype, jnp.floating) and not np.can_cast(
            dtype, wanted.dtype, "same_kind"
        ):
            raise UsageError(
                f"{where} is {wanted.dtype} after a reset, {dtype} after a step: make "
                f"reset_env return {dtype}"
            )
        return jax.lax.convert_element_type(leaf, wanted.dtype)

    return jax.tree_util.tree_map_with_path(one, tree, like)


def _check_structure(tree: Any, like: Any, what: str) -> None:
    after, first = jax.tree.structure(tree), jax.tree.structure(like)
    if after != first:
        raise UsageError(
            f"{what} has the structure {first} after a reset, {after} after a step: let reset_env "
            f"and step_env return the same"
        )


def scalar(value: Any, dtype: Any, what: str, name: str) -> jax.Array:
    """`value` as a strongly typed scalar []."""
    if not isinstance(value, _NUMBERS):
        raise UsageError(f"{what} of {name!r} is a {type(value).__name__}, but must be a scalar")
    if jnp.shape(value) != ():
        raise UsageError(
            f"{what} of {name!r} has shape {jnp.shape(value)}, but must be a scalar: squeeze it "
            f"in step_env"
        )
    return jnp.asarray(value, dtype)


def weight(info: Any, name: str) -> Any:
    """`info["weight"]`, what the action counts for the learner; () where nothing is said."""
    if not isinstance(info, dict) or "weight" not in info:
        return ()
    return scalar(info["weight"], jnp.float32, "info['weight']", name)
