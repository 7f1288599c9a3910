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
        # shares first: a variance times its count would overflow
        new_var = var * (moments.count / total) + (batch_var + between) * (added / total)
        if isinstance(counts, tuple):
            return new_mean, new_var
        return jnp.where(added > 0, new_mean, mean), jnp.where(added > 0, new_var, var)

    merged = jax.tree.map(merge, moments.mean, moments.var, samples)
    outer, inner = jax.tree.structure(moments.mean), jax.tree.structure((0, 0))
    mean, var = jax.tree.transpose(outer, inner, merged)
    return Moments(moments.count + added, mean, var)


def _batch_moments(x: jax.Array, counts: Any) -> tuple[jax.Array, jax.Array]:
    """Mean and population variance over the first two axes of x [T, B, ...], where it counts.

    The corrected two-pass algorithm (Chan, Golub & LeVeque 1983), begun at a sample: a constant has
    exactly its own value as the mean and variance 0, however large it is.
    """
    if isinstance(counts, tuple):
        first, centre = x[0, 0], lambda x, mean: x - mean[None, None]
        average = lambda x: jnp.mean(x, axis=(0, 1))
    else:
        rows = counts.reshape(counts.shape + (1,) * (x.ndim - 2))
        share = jnp.maximum(jnp.mean(counts, dtype=jnp.float32), 1e-30)  # 1 if all: same bits
        first = x.reshape(-1, *x.shape[2:])[jnp.argmax(counts.reshape(-1))]
        centre = lambda x, mean: jnp.where(rows, x - mean[None, None], 0.0)
        average = lambda x: jnp.mean(x, axis=(0, 1)) / share
    guess = first + average(centre(x, first))
    centred = centre(x, guess)
    error = average(centred)
    return guess + error, jnp.maximum(average(jnp.square(centred)) - jnp.square(error), 0.0)


def varies(x: jax.Array, counts: jax.Array, *, size: Any = None, axis: int | None = None):
    """Whether x varies where it counts by more than the rounding of float32: 1e-6 of its size.

    The mean of equal numbers is off by rounding: judged by the deviation, 7 times .1 would vary.
    What holds nan varies, so that it is seen.

    Args:
        x, counts: of one shape.
        size: of what x was summed up from, the same shape; default |x|.
        axis: along which, kept with length 1; None all, the result is [].

    >>> bool(varies(jnp.array([0.3, 0.1 + 0.2, 9.0]), jnp.array([True, True, False])))
    False
    """
    keep: dict[str, Any] = dict(axis=axis, keepdims=axis is not None)
    highest = jnp.max(jnp.where(counts, x, -jnp.inf), **keep)
    lowest = jnp.min(jnp.where(counts, x, jnp.inf), **keep)
    largest = jnp.max(jnp.where(counts, jnp.abs(x) if size is None else size, 0.0), **keep)
    return ~(highest - lowest <= 1e-6 * largest)


def standardise(moments: Moments, x: Any, clip: float) -> Any:
    """(x - mean) / std, clipped to [-clip, clip]; leaves [..., *sample]."""

    def one(mean, var, leaf):
        axes = tuple(range(leaf.ndim - mean.ndim))
        scale = jax.lax.rsqrt(var + 1e-8)
        centred = leaf - jnp.expand_dims(mean, axes)
        return jnp.clip(centred * jnp.expand_dims(scale, axes), -clip, clip)

    return jax.tree.map(one, moments.mean, moments.var, x)
