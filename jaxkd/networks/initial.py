"""Initial weights."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


def orthogonal(gain: float) -> Callable:
    """An initialiser of `gain` times orthonormal rows or columns (the fewer of both).

    Haar-distributed; kernels [..., in, out]. Gram-Schmidt, each vector twice ("twice is enough",
    Giraud et al. 2005), in plain operations: batched QR of LAPACK, which
    `flax.linen.initializers.orthogonal` becomes under vmap over seeds, can deadlock jaxlib's thread
    pool on two cores (two such calls wait for each other's tasks).

    >>> w = orthogonal(1.0)(jax.random.key(0), (3, 2), jnp.float32)
    >>> bool(jnp.allclose(w.T @ w, jnp.eye(2), atol=1e-6))
    True
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        rows, columns = math.prod(shape[:-1]), shape[-1]
        found = _orthonormal(key, min(rows, columns), max(rows, columns))
        return gain * (found if rows < columns else found.T).reshape(shape).astype(dtype)

    return init


# Inlined, so that programs are the same; traced once a size, where flax asks for the shape of every
# kernel at every call of a network.
@partial(jax.jit, static_argnums=(1, 2), inline=True)
def _orthonormal(key: jax.Array, few: int, many: int) -> jax.Array:
    """`few` orthonormal rows [few, many]."""
    vectors = jax.random.normal(key, (few, many), jnp.float32)

    def body(i, done):
        vector = vectors[i]
        for _ in range(2):
            vector = vector - (done @ vector) @ done
        return done.at[i].set(vector / jnp.linalg.norm(vector))

    return jax.lax.fori_loop(0, few, body, jnp.zeros_like(vectors))
