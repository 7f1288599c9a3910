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
    """Moments of nothing for samples like `spec` (a pytree of shapes): mean 0, variance 1, so that `standardise` is the identity."""
    return Moments(
        jnp.zeros(()),
        jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), spec),
        jax.tree.map(lambda x: jnp.ones(x.shape, jnp.float32), spec),
    )


def update(moments: Moments, samples: Any) -> Moments:
    """Moments after `samples`, whose leaves are [T, B, ...] with one sample in the last axes.

    >>> import jax.numpy as jnp
    >>> update(empty(jnp.zeros(())), jnp.array([[1.0, 3.0]])).var
    Array(1., dtype=float32)
    """
    first = jax.tree.leaves(samples)[0]
    added = jnp.float32(first.shape[0] * first.shape[1])
    total = moments.count + added

    def merge(mean, var, x):
        x = x.astype(jnp.float32)
        batch_mean, batch_var = jnp.mean(x, axis=(0, 1)), jnp.var(x, axis=(0, 1))
        shift = batch_mean - mean
        between = jnp.square(shift) * (moments.count / total)
        return mean + shift * (added / total), (
            var * moments.count + (batch_var + between) * added
        ) / total

    merged = jax.tree.map(merge, moments.mean, moments.var, samples)
    mean, var = jax.tree.transpose(
        jax.tree.structure(moments.mean), jax.tree.structure((0, 0)), merged
    )
    return Moments(total, mean, var)


def standardise(moments: Moments, x: Any, clip: float) -> Any:
    """(x - mean) / std, clipped to [-clip, clip]; leaves [..., *sample]."""

    def one(mean, var, leaf):
        axes = tuple(range(leaf.ndim - mean.ndim))
        scale = jax.lax.rsqrt(var + 1e-8)
        return jnp.clip(
            (leaf - jnp.expand_dims(mean, axes)) * jnp.expand_dims(scale, axes), -clip, clip
        )

    return jax.tree.map(one, moments.mean, moments.var, x)
