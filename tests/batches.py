"""A batch for tests of components: zeros, with the fields that matter."""

import jax.numpy as jnp

from jaxkd.base import Batch


def batch(shape: tuple[int, int], **fields) -> Batch:
    """Rows of zeros of this shape, and () for what has no shape of its own, with `fields`.

    Python numbers fill the shape, lists become float32 arrays, everything else is taken as it is.
    """
    zeros = jnp.zeros(shape)

    def array(value):
        if isinstance(value, int | float):
            return zeros + value
        return jnp.asarray(value, jnp.float32) if isinstance(value, list) else value

    per_row = dict.fromkeys(("reward", "terminated", "truncated", "reset"), zeros)
    no_shape = dict.fromkeys(("obs", "next_obs", "carry", "acting", "teacher"), ())
    given = {name: array(value) for name, value in fields.items()}
    return Batch(**per_row | no_shape | {"action": zeros.astype(jnp.int32)} | given)
