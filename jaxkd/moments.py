"""Running mean and variance, merged batch by batch (Chan, Golub & LeVeque 1979)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Moments(NamedTuple):
    """Count, mean and population variance of everything seen so far."""

    count: jax.Array  # float32 []
    mean: Any  # a pytree of float32 [...], one sample's shape
    var: Any  # the same


def empty(spec: Any) -> Moments:
    """Moments of nothing: mean 0 and variance 1, so that `standardise` is the identity.

    Args:
        spec: one sample, or its ShapeDtypeStructs (a pytree).
    """
    return Moments(
        jnp.zeros((), jnp.float32),
        jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), spec),
        jax.tree.map(lambda x: jnp.ones(x.shape, jnp.float32), spec),
    )


def update(moments: Moments, samples: Any, weight: Any = ()) -> Moments:
    """Moments after `samples`.

    Args:
        samples: leaves [T, B, ...], one sample in the last axes.
        weight: [T, B] or (), all. What has weight 0 is not counted, whatever stands in it (also
            nan); every other sample counts once.

    >>> import jax.numpy as jnp
    >>> update(empty(jnp.zeros(())), jnp.array([[1.0, 3.0]])).var
    Array(1., dtype=float32)
    """
    first = jax.tree.leaves(samples)[0]
    counts = () if isinstance(weight, tuple) else weight > 0
    if isinstance(counts, tuple):
        added = jnp.float32(first.shape[0] * first.shape[1])
        total = moments.count + added
    else:
        added = jnp.sum(counts, dtype=jnp.float32)
        total = jnp.maximum(moments.count + added, 1.0)  # nothing yet, and nothing added

    def merge(mean, var, x):
        batch_mean, batch_var = _batch_moments(x.astype(jnp.float32), counts)
        shift = batch_mean - mean
        between = jnp.square(shift) * (moments.count / total)
        new_mean = mean + shift * (added / total)
        new_var = (var * moments.count + (batch_var + between) * added) / total
        if isinstance(counts, tuple):
            return new_mean, new_var
        return jnp.where(added > 0, new_mean, mean), jnp.where(added > 0, new_var, var)

    merged = jax.tree.map(merge, moments.mean, moments.var, samples)
    outer, inner = jax.tree.structure(moments.mean), jax.tree.structure((0, 0))
    mean, var = jax.tree.transpose(outer, inner, merged)
    return Moments(moments.count + added, mean, var)


def _batch_moments(x: jax.Array, counts: Any) -> tuple[jax.Array, jax.Array]:
    """Mean and population variance over the first two axes of x [T, B, ...], where it counts."""
    if isinstance(counts, tuple):
        return jnp.mean(x, axis=(0, 1)), jnp.var(x, axis=(0, 1))
    rows = counts.reshape(counts.shape + (1,) * (x.ndim - 2))
    share = jnp.maximum(jnp.mean(counts, dtype=jnp.float32), 1e-30)  # 1 if all count: same bits
    mean = jnp.mean(jnp.where(rows, x, 0.0), axis=(0, 1)) / share
    centred = jnp.where(rows, x - mean[None, None], 0.0)
    return mean, jnp.mean(jnp.square(centred), axis=(0, 1)) / share


def standardise(moments: Moments, x: Any, clip: float) -> Any:
    """(x - mean) / std, clipped to [-clip, clip]; leaves [..., *sample]."""

    def one(mean, var, leaf):
        axes = tuple(range(leaf.ndim - mean.ndim))
        scale = jax.lax.rsqrt(var + 1e-8)
        centred = leaf - jnp.expand_dims(mean, axes)
        return jnp.clip(centred * jnp.expand_dims(scale, axes), -clip, clip)

    return jax.tree.map(one, moments.mean, moments.var, x)
