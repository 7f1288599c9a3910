"""Keys inside of loops and branches, so that `jax_debug_key_reuse` sees what is drawn from them.

It counts moving an axis of an array of keys as a use, and what comes out of it as used up. `vmap`
moves axes of what a scan runs over, and makes a branch a choice between each operand and itself:
with seeds as lanes every program of ours would be refused. Words, the plain integers that a key is
made of, may be moved.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def words(tree: Any) -> Any:
    """`tree` with its keys as words: a key [...] as uint32 [..., W].

    >>> words((jax.random.key(7), 1.5))
    (Array([0, 7], dtype=uint32), 1.5)
    """
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)


def typed(tree: Any, like: Any) -> Any:
    """`tree` with keys again where `like` has keys of the same kind.

    >>> typed(words(jax.random.key(7)), jax.random.key(0)) == jax.random.key(7)
    Array(True, dtype=bool)
    """

    def one(x, key):
        return jax.random.wrap_key_data(x, impl=jax.random.key_impl(key)) if is_key(key) else x

    return jax.tree.map(one, tree, like)


def scan(body: Callable, carry: Any, rows: Any, length: int | None = None) -> tuple[Any, Any]:
    """`jax.lax.scan`, with keys among the rows [T, ...]."""
    return jax.lax.scan(
        lambda carry, row: body(carry, typed(row, rows)), carry, words(rows), length
    )


def is_key(x: Any) -> bool:
    """Whether x is a typed key, or an array of them."""
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
