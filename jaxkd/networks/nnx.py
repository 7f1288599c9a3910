"""From an nnx module to functions of its arrays."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import UsageError


class Functions(NamedTuple):
    """What `feedforward` needs of a module."""

    init: Callable  # (key) -> params
    apply: Callable  # (params, obs) -> what the module returns
    trainable: Callable  # (params) -> the same tree of bools


def is_module(value: Any) -> bool:
    """Whether it is an nnx module; who has one has imported nnx."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(value, nnx.Module)


def functions(module: Any) -> Functions:
    """Of an nnx module, or of what makes one: a function (rngs) -> module, such as its class.

    Params are {"params": its `nnx.Param`s, "state": its other variables}, as plain dicts; what its
    generators of random numbers hold is no part of them.

    Raises:
        UsageError: it is something else, or makes something else.
    """
    from flax import nnx  # takes half a second

    def divided(made):
        return nnx.split(made, nnx.RngState, nnx.Param, ...)

    def plain(trained, others):
        return {"params": nnx.to_pure_dict(trained), "state": nnx.to_pure_dict(others)}

    if is_module(module):
        _, _, trained, others = divided(module)
        own = plain(trained, others)
        init = lambda key: jax.tree.map(jnp.array, own)
        abstract = module
    else:
        init = lambda key: plain(*divided(module(nnx.Rngs(key)))[2:])
        abstract = _abstract(module, nnx)
    graph, random, trained, others = divided(abstract)

    def filled(state, values):
        state = jax.tree.map(lambda x: x, state)  # replaced in a copy
        nnx.replace_by_pure_dict(state, values)
        return state

    def apply(params, obs):
        begun = jax.tree.map(_unused, random)
        states = filled(trained, params["params"]), filled(others, params["state"])
        before = jax.tree.leaves((begun, *states))
        model = nnx.merge(graph, begun, *states)
        result = model(obs)
        after = jax.tree.leaves(divided(model)[1:])
        if len(after) != len(before) or any(a is not b for a, b in zip(after, before)):
            raise UsageError(
                f"{type(model).__name__} updates running averages or draws random numbers "
                f"(BatchNorm, SpectralNorm, Dropout), which a policy cannot. Call its eval() "
                f"before, or use LayerNorm, or normalise=True."
            )
        return result

    def trainable(params):
        same = lambda tree, value: jax.tree.map(lambda x: value, tree)
        return {"params": same(params["params"], True), "state": same(params["state"], False)}

    return Functions(init, apply, trainable)


def _abstract(make: Any, nnx: Any) -> Any:
    """The module of `make` without its arrays."""
    try:
        made = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    except Exception as error:  # whatever it raises
        raise _refusal(make, f" It fails on nnx.Rngs(0): {check.line(error)}") from error
    if not isinstance(made, nnx.Module):
        raise _refusal(make, f" It returns {type(made).__name__}.")
    return made


def _refusal(make: Any, more: str) -> UsageError:
    name = getattr(make, "__name__", type(make).__name__)
    return UsageError(
        f"module must be a flax module, an nnx module, or a function (rngs) -> nnx module such as "
        f"its class; got {name}.{more}"
    )


def _unused(x: Any) -> Any:
    """What nothing draws from: a key, or a number of draws."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), x.shape)
    return jnp.zeros(x.shape, x.dtype)
