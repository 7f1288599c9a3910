"""Feature distillation: the student's hidden layers, linearly mapped onto the teacher's."""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.base import Batch, LossTerm, Outputs, UsageError
from jaxkd.description import described

_LAST = {"features": "features"}


@described
def feature_mse(layers: Mapping[str, str] = _LAST) -> LossTerm:
    """Mean over layers of mean_F (W h_S + b - h_T)^2.

    Romero et al. 2015, FitNets; Parisotto et al. 2016, Actor-Mimic.

    W and b are the term's own parameters, trained with the student and thrown away with the term.

    Args:
        layers: the teacher's layer for each of the student's: "features" is `Outputs.features`
            [..., F], the last hidden layer of the built-in networks, every other name is
            `Outputs.extra[name]` [..., F] of a module that returns it.

    Returns:
        a term, [L, N]; reads these layers of the student and of `batch.teacher`.

    Raises:
        UsageError: a layer is missing; the message lists those that exist.

    >>> hint = feature_mse({"features": "hidden_1"})
    """
    if not isinstance(layers, Mapping) or not layers:
        raise UsageError(
            f"layers must map a layer of the student to one of the teacher, such as {_LAST}, "
            f"got {layers!r}."
        )
    layers = dict(layers)

    def init(key, spec):
        student, batch = spec

        def projection(ours, theirs):
            narrow, wide = (layer.shape[-1] for layer in _pair(student, batch, ours, theirs))
            own = jax.random.fold_in(
                key, zlib.crc32(ours.encode())
            )  # by name: another layer changes no other's key
            return {
                "kernel": jax.nn.initializers.lecun_normal()(own, (narrow, wide), jnp.float32),
                "bias": jnp.zeros(wide, jnp.float32),
            }

        return {ours: projection(ours, theirs) for ours, theirs in layers.items()}

    def loss(params, student, batch, context):
        def error(ours, theirs):
            hidden, wanted = _pair(student, batch, ours, theirs)
            bias = jnp.broadcast_to(params[ours]["bias"], wanted.shape)
            return jnp.mean(jnp.square(hidden @ params[ours]["kernel"] + bias - wanted), axis=-1)

        return jnp.mean(jnp.stack([error(*pair) for pair in layers.items()]), axis=0)

    return LossTerm(init, loss)


def _pair(student: Outputs, batch: Batch, ours: str, theirs: str) -> tuple[Any, Any]:
    """The student's layer and the teacher's, [..., F] each."""
    return _layer(student, "student", ours, batch), _layer(batch.teacher, "teacher", theirs, batch)


def _layer(outputs: Outputs, who: str, name: str, batch: Batch) -> Any:
    """One layer [..., F], or an error that lists the layers there are; heads [...] are none."""
    rank = len(batch.reward.shape) + 1
    layers = {"features": outputs.features} | (outputs.extra or {})
    layers = {k: x for k, x in layers.items() if len(getattr(x, "shape", ())) == rank}
    if name not in layers:
        there = ", ".join(map(repr, layers)) or "none"
        raise UsageError(
            f"it reads layer {name!r} of the {who}, which has: {there}. "
            f"Name one of them, or return it in Outputs.extra."
        )
    return layers[name]
