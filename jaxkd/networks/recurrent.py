"""Networks with a memory: dense layers, an LSTM or GRU cell, and every built-in network's heads.

Legend of shapes: `L` time, `N` sequences, `X` inputs of the cell, `H` units of the cell, `G` gates
(4 in an LSTM, 3 in a GRU). Everything but the recurrence itself is computed on the whole [L, N]
outside of the scan, the cell's input projection too.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import Policy, UsageError
from jaxkd.cpu import unrolled
from jaxkd.description import described
from jaxkd.networks import module, wrap
from jaxkd.networks.initial import orthogonal
from jaxkd.networks.mlp import Dense, extra_heads, heads

_FORGET = 1.0  # initial bias of the forget gate: remember first (Jozefowicz et al. 2015)


class Cell(NamedTuple):
    """A recurrence. A carry is `memories` arrays float32 [N, H]; the cell shows the first."""

    gates: int  # G
    memories: int
    advance: Callable  # (carry, inputs [N, G H] of all gates, recurrent kernel [H, G H]) -> carry
    biases: tuple[float, ...]  # initial ones, by gate


def _lstm(carry: tuple, inputs: jax.Array, kernel: jax.Array) -> tuple:
    """f, i, o = sigmoid(W [x, h] + b), c' = f c + i tanh(W_c [x, h] + b_c), h' = o tanh(c').

    Hochreiter & Schmidhuber 1997; Gers et al. 2000.
    """
    h, c = carry
    f, i, o, new = jnp.split(
        (inputs + h.astype(inputs.dtype) @ kernel).astype(jnp.float32), 4, axis=-1
    )
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(new)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _gru(carry: tuple, inputs: jax.Array, kernel: jax.Array) -> tuple:
    """r, z = sigmoid(W [x, h] + b), n = tanh(W_n x + b_n + r U_n h), h' = (1 - z) n + z h.

    Cho et al. 2014, as in cuDNN.
    """
    (h,) = carry
    rest, inner = (x.astype(jnp.float32) for x in (inputs, h.astype(inputs.dtype) @ kernel))
    (r, z, n), (ur, uz, un) = (jnp.split(x, 3, axis=-1) for x in (rest, inner))
    r, z = jax.nn.sigmoid(r + ur), jax.nn.sigmoid(z + uz)
    return ((1 - z) * jnp.tanh(n + r * un) + z * h,)


LSTM = Cell(4, 2, _lstm, (_FORGET, 0.0, 0.0, 0.0))
GRU = Cell(3, 1, _gru, (0.0, 0.0, 0.0))


def _by_gate(gates: int) -> Callable:
    """An initialiser of kernels [in, G H], orthogonal for each gate."""

    def init(key, shape, dtype=jnp.float32):
        rows, columns = shape[0], shape[1] // gates
        made = jax.vmap(lambda key: orthogonal(1.0)(key, (rows, columns), dtype))(
            jax.random.split(key, gates)
        )  # [G, in, H]
        return jnp.moveaxis(made, 0, 1).reshape(shape)

    return init


class Recurrent(nn.Module):
    """Dense layers, a cell, and the heads on what it shows."""

    torso: Callable[..., nn.Module]
    cell: Cell
    units: int
    action_space: Any
    extra: tuple[str, ...]
    dtype: Any

    @nn.compact
    def __call__(self, carry, obs, reset):
        """(carry [N, ...], obs [N] or [L, N], reset alike) -> (carry, Outputs).

        Where reset, the carry is zeros first.
        """
        cell, width = self.cell, self.cell.gates * self.units
        layers = self.torso(name="actor").layers(obs)
        bias = lambda key, shape, dtype: jnp.repeat(jnp.array(cell.biases, dtype), self.units)
        inputs = nn.Dense(
            width, kernel_init=_by_gate(cell.gates), bias_init=bias, dtype=self.dtype, name="input"
        )(layers[-1])
        kernel = self.param("recurrent", _by_gate(cell.gates), (self.units, width)).astype(
            self.dtype
        )

        def advance(carry, row):
            inputs, reset = row
            carry = jax.tree.map(lambda x: jnp.where(reset[:, None] > 0, 0.0, x), carry)
            carry = cell.advance(carry, inputs, kernel)
            return carry, carry[0]

        carry, shown = (
            advance(carry, (inputs, reset))
            if reset.ndim == 1
            else jax.lax.scan(advance, carry, (inputs, reset))
        )
        return carry, heads(self, (*layers[1:], shown), shown, shown)


def _recurrent(
    name, cell, env, hidden, units, activation, normalise, dtype, select, extra
) -> Policy:
    """The policy of `lstm` and `gru`; `name` is for messages."""
    hidden = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    for width in hidden:
        check.count("hidden", width)
    if units is None and not hidden:
        raise UsageError(f"{name} without hidden layers needs units=, the width of its cell.")
    units = hidden[-1] if units is None else units
    check.count("units", units)
    obs_spec = wrap.field(env.obs_spec, select)
    ranks = tuple(len(x.shape) for x in jax.tree.leaves(obs_spec))
    check.function("activation", activation, "such as jax.nn.tanh")
    torso = partial(Dense, hidden, activation, False, dtype, ranks)
    network = Recurrent(torso, cell, units, env.action_space, extra_heads(extra), dtype)

    def initial_carry(num_envs):
        return tuple(jnp.zeros((num_envs, units), jnp.float32) for _ in range(cell.memories))

    def init(key):
        obs = jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), obs_spec)
        return network.init(unrolled(key), initial_carry(1), obs, jnp.ones(1, jnp.float32))

    policy = Policy(init, initial_carry, network.apply, network.apply)
    return module.wrapped(policy, obs_spec, normalise, select)


@described
def lstm(
    env: Any,
    hidden: Sequence[int] = (64,),
    *,
    units: int | None = None,
    activation: Callable = nn.tanh,
    normalise: bool = False,
    dtype: Any = jnp.float32,
    select: str | None = None,
    extra: Sequence[str] = (),
) -> Policy:
    """Dense layers, an LSTM cell, a policy and a value head.

    The carry is (h, c), zeros where an episode begins. Weights are orthogonal for each gate, the
    forget gate's bias begins at 1. Hochreiter & Schmidhuber 1997; Gers et al. 2000.

    Args:
        env: an `Env` or anything with `obs_spec` and `action_space`.
        hidden: widths of the dense layers before the cell; () for none.
        units: H, the width of the cell; default that of the last dense layer.
        activation: of the dense layers.
        dtype: of the matrix products; the carry stays float32.
        normalise, select, extra: as in `mlp`; the layers in `Outputs.extra` end with the cell's h,
            which is `features` too.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    >>> student = lstm(env, (32,))
    >>> [x.shape for x in student.initial_carry(2)]
    [(2, 32), (2, 32)]
    """
    return _recurrent("lstm", LSTM, env, hidden, units, activation, normalise, dtype, select, extra)


@described
def gru(
    env: Any,
    hidden: Sequence[int] = (64,),
    *,
    units: int | None = None,
    activation: Callable = nn.tanh,
    normalise: bool = False,
    dtype: Any = jnp.float32,
    select: str | None = None,
    extra: Sequence[str] = (),
) -> Policy:
    """Dense layers, a GRU cell, a policy and a value head (Cho et al. 2014).

    The cell has three quarters of an LSTM cell's parameters.

    Args:
        env, hidden, units, activation, normalise, dtype, select, extra: as in `lstm`; the carry is
            (h,).

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    >>> student = gru(env, (32,), units=16)
    >>> [x.shape for x in student.initial_carry(2)]
    [(2, 16)]
    """
    return _recurrent("gru", GRU, env, hidden, units, activation, normalise, dtype, select, extra)
