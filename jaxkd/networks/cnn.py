"""A small convolutional network for grids such as MinAtar's."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import Policy, UsageError
from jaxkd.description import described
from jaxkd.networks import wrap
from jaxkd.networks.initial import orthogonal
from jaxkd.networks.mlp import actor_critic

_SIZE = 3  # of the kernel, MinAtar's (Young & Tian 2019)


def banded(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3x3 VALID convolution as one matrix product for each row of the output.

    The kernel is laid out as a band [3 W C, (W - 2) F]: its zeros cost less than `lax.conv` does.
    Forward and gradient of 1024 grids of MinAtar are 24 to 32 times as fast on two CPU cores
    (benchmarks/speed/throughput.py), a whole distillation of Breakout 1.22 times on an H100
    (benchmarks/speed/accelerator.py). Lanes of it are a batched product, where those of `lax.conv`
    become a grouped convolution.

    Args:
        x: [n, H, W, C].
        kernel: [3, 3, C, F].

    Returns:
        [n, H - 2, W - 2, F].
    """
    n, height, width, channels = x.shape
    rows, columns, features = height - _SIZE + 1, width - _SIZE + 1, kernel.shape[-1]
    from_column = jnp.arange(columns)[None, None, :] + jnp.arange(_SIZE)[:, None, None]
    place = jnp.arange(width)[None, :, None] == from_column  # [3, W, W-2]
    band = jnp.einsum("hkcf,kwo->hwcof", kernel, place.astype(kernel.dtype))
    stacked = jnp.stack([x[:, i : i + rows] for i in range(_SIZE)], axis=2)  # [n, H-2, 3, W, C]
    inputs = stacked.reshape(n * rows, _SIZE * width * channels)
    out = inputs @ band.reshape(_SIZE * width * channels, columns * features)
    return out.reshape(n, rows, columns, features)


class Convolutional(nn.Module):
    """3x3 convolutions and dense layers, each followed by the activation."""

    channels: tuple[int, ...]
    dense: tuple[int, ...]
    activation: Callable
    dtype: Any

    @nn.compact
    def layers(self, obs) -> tuple[jax.Array, ...]:
        """The input and every layer's activations, [..., F] each.

        Those of a convolution are flattened, F = height * width * channels.
        """
        lead = obs.shape[:-3]
        x = obs.reshape((-1, *obs.shape[-3:])).astype(self.dtype)
        layers = (x.reshape((*lead, -1)),)
        for i, width in enumerate(self.channels):
            kernel = self.param(
                f"conv_{i}", orthogonal(math.sqrt(2)), (_SIZE, _SIZE, x.shape[-1], width)
            )
            bias = self.param(f"conv_{i}_bias", nn.initializers.zeros, (width,), jnp.float32)
            x = self.activation(
                banded(x, kernel.astype(self.dtype)) + bias.astype(self.dtype)[None, None, None]
            )
            layers += (x.reshape((*lead, -1)),)
        for width in self.dense:
            layers += (
                self.activation(
                    nn.Dense(width, kernel_init=orthogonal(math.sqrt(2)), dtype=self.dtype)(
                        layers[-1]
                    )
                ),
            )
        return layers

    def __call__(self, obs):
        return self.layers(obs)[-1]


@described
def cnn(
    env: Any,
    channels: Sequence[int] = (16,),
    dense: Sequence[int] = (128,),
    *,
    separate: bool = False,
    activation: Callable = nn.relu,
    normalise: bool = False,
    dtype: Any = jnp.float32,
    select: str | None = None,
    extra: Sequence[str] = (),
) -> Policy:
    """3x3 convolutions, dense layers, a policy and a value head.

    MinAtar's network has 16 channels and 128 units (Young & Tian 2019). Its layers [..., F] are in
    `Outputs.extra`: "hidden_0", "hidden_1", ..., first the convolutions, flattened.

    Args:
        env: an `Env` or anything with `obs_spec` and `action_space`; the observation is one grid
            (height, width, channels). Pixels of uint8 are seen as 0 to 255 unless normalise=True.
        channels: of the convolutions, 3x3 without padding.
        dense: widths of the dense layers behind them.
        separate, activation, normalise, dtype, select, extra: as in `mlp`.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("Breakout-MinAtar", num_envs=2)
    >>> student = cnn(env, (4,), (32,))                       # 1/15.6 of the default
    """
    channels, dense = tuple(channels), tuple(dense)
    for width in channels + dense:
        check.count("channels and dense", width)
    shape = getattr(wrap.field(env.obs_spec, select), "shape", None)
    if shape is None or len(shape) != 3 or min(shape[:2]) <= 2 * len(channels):
        raise UsageError(
            f"cnn needs one grid (height, width, channels) of at least 3x3 at each of "
            f"{len(channels)} convolutions, the observation is {shape}. Use networks.mlp, or "
            f"select= a field."
        )
    check.function("activation", activation, "such as jax.nn.relu")
    torso = partial(Convolutional, channels, dense, activation, dtype)
    return actor_critic(
        env,
        torso,
        separate=separate,
        normalise=normalise,
        dtype=dtype,
        select=select,
        extra=extra,
    )
