"""What XLA compiles badly for a CPU, put so that it compiles it well: the results are the same.
Elsewhere it is left alone.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl
from jax.lax import optimization_barrier

from jaxkd import keys

_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
_PARITY = 0x1BD11BDA


def grad(fn: Callable, has_aux: bool = False) -> Callable:
    """`jax.grad` of a function of arrays; on a CPU as a batch of one, which puts the matrix
    products of the backward pass into a fast order.

    The same up to rounding. PPO runs 1.2 to 1.8 times as fast for it, distillation 1.1 to 1.2
    (benchmarks/speed/levers.py).

    >>> grad(jnp.square)(jnp.float32(3.0)).item()
    6.0
    """
    plain = jax.grad(fn, has_aux=has_aux)
    if jax.default_backend() != "cpu":
        return plain

    def batched(*args):
        found = jax.vmap(plain)(*jax.tree.map(lambda x: x[None], args))
        return jax.tree.map(lambda x: x[0], found)

    return batched


def where_any(wanted: jax.Array, then: Callable, otherwise: Any, *args: Any) -> Any:
    """`then(*args)`, which equals `otherwise` where none of `wanted` [B] is true: on a CPU it is
    computed only where one is.

    A branch on an accelerator waits for the host, one among lanes computes both sides, and one over
    sharded environments needs all devices to agree.

    Args:
        args: of `then`; keys are among these, see `keys.py`.

    >>> where_any(jnp.array([False, True]), lambda: 2 * jnp.ones(()), jnp.ones(())).item()
    2.0
    """
    shared = jax.sharding.get_abstract_mesh().shape.get("envs", 1) > 1
    if shared or jax.default_backend() != "cpu":
        return then(*args)
    usual = keys.words(otherwise)
    chosen = jax.lax.cond(
        jnp.any(wanted),
        lambda given: keys.words(then(*keys.typed(given, args))),
        lambda given: usual,
        keys.words(args),
    )
    return keys.typed(chosen, otherwise)


def unrolled(key: jax.Array) -> jax.Array:
    """A key [...] of the same random numbers, bit for bit; on a CPU faster to draw.

    JAX compiles threefry for a CPU as a loop over its rounds, which is not vectorised; here the
    rounds stand one after the other: distillation runs 1.2 to 1.5 times as fast for it
    (benchmarks/speed/levers.py). Keys of other kinds are returned as they are. `jax.random.poisson`
    alone takes no such key: give it `jax.random.wrap_key_data(jax.random.key_data(key))`.

    >>> key = jax.random.key(0)
    >>> (jax.random.uniform(unrolled(key)) == jax.random.uniform(key)).item()
    True
    """
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    other_bits = not getattr(jax.config, "jax_threefry_partitionable")  # noqa: B009, pyright's wish
    if jax.default_backend() != "cpu" or other_bits:
        return key
    if not typed or jax.random.key_impl(key) != "threefry2x32":
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_UNROLLED)


@jax.jit  # one function in the program, however often it is called
def _hash(key: jax.Array, high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011) of two words [...] with one key [2], all
    uint32.

    The barriers keep one hash out of the loop of the next: the XLA of jax 0.11 takes minutes to
    compile several in one.
    """
    key = optimization_barrier(key)
    words = key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY)
    a, b = high + words[0], low + words[1]
    for i in range(5):
        for r in _ROTATIONS[i % 2]:
            a = a + b
            b = a ^ ((b << jnp.uint32(r)) | (b >> jnp.uint32(32 - r)))
        a, b = a + words[(i + 1) % 3], b + words[(i + 2) % 3] + jnp.uint32(i + 1)
    return optimization_barrier((a, b))


def _words(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Two random words for each place of an array of this shape."""
    number = math.prod(shape)
    if number >= 2**32:
        raise NotImplementedError(
            f"{number} random numbers in one call are too many: split the key first."
        )
    return _hash(
        key, jnp.zeros(shape, jnp.uint32), jnp.arange(number, dtype=jnp.uint32).reshape(shape)
    )


def _bits(key: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
    a, b = _words(key, shape)
    if width == 64:
        return (a.astype(jnp.uint64) << jnp.uint64(32)) | b.astype(jnp.uint64)
    return (a ^ b).astype(f"uint{width}")


_UNROLLED = define_prng_impl(
    key_shape=(2,),
    seed=lambda seed: jax.random.key_data(jax.random.key(seed)),
    split=lambda key, shape: jnp.stack(_words(key, tuple(shape)), axis=-1),
    random_bits=_bits,
    fold_in=lambda key, number: jnp.stack(_hash(key, jnp.uint32(0), jnp.uint32(number))),
    name="threefry2x32 unrolled",
    tag="fu",
)
