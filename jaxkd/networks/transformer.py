"""A causal transformer whose cache is its carry, and every built-in network's heads.

Legend of shapes: `L` time, `N` sequences, `W` rows of the cache, `D` width, `H` heads, `G` groups
of heads that share a key and a value, `R` = H / G, `K` size of a head.

The cache is a ring: the row at position p of its episode lies in place p mod W, so that nothing is
moved, and a reset erases nothing: positions begin anew, and what lies beyond them is not seen.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import Discrete, Policy, UsageError
from jaxkd.cpu import unrolled
from jaxkd.description import described
from jaxkd.distributions import Categorical
from jaxkd.networks import module, wrap
from jaxkd.networks.mlp import extra_heads, heads

_EMBEDDING = 0.02  # standard deviation of a token's first vector (Radford et al. 2019)
_ROTATION = 1e4  # the longest wave length over 2 pi (Su et al. 2021)
_EPSILON = 1e-6  # beside the mean square


class Cache(NamedTuple):
    """What earlier rows left, a leaf a layer; of the row at position p in place p mod W."""

    keys: tuple[jax.Array, ...]  # [N, W, G, K] of each layer, rotated
    values: tuple[jax.Array, ...]  # [N, W, G, K]
    position: jax.Array  # int32 [N], rows of the episode so far


class Seen(NamedTuple):
    """Where rows [L, N] stand, and which rows each of them sees."""

    position: jax.Array  # int32 [L, N], of each row in its episode
    cached: jax.Array  # bool [N, L, W], which places of the cache
    new: jax.Array  # bool [N, L, L], which of these rows; not used for a single one
    place: jax.Array  # int32 [L, N] in the cache, W for what is not kept


def _places(last: jax.Array, context: int) -> jax.Array:
    """The position of what lies in each place, [N, W], once rows up to `last` [N] are in.

    Below 0 where there is nothing yet.
    """
    return last[:, None] - (last[:, None] - jnp.arange(context)[None]) % context


def _seen(before: jax.Array, reset: jax.Array, context: int) -> Seen:
    """Of rows [L, N] behind `before` [N] rows of the same episode."""
    row = jnp.arange(reset.shape[0])
    began = jnp.where(reset > 0, row[:, None], -1)
    began = jax.lax.cummax(began)  # the row with which each row's episode began, -1: before these
    position = jnp.where(began >= 0, row[:, None] - began, before[None] + row[:, None])
    lies = _places(before - 1, context)
    near = position.T[:, :, None] - lies[:, None] < context  # [N, L, W]
    cached = (lies >= 0)[:, None] & near & (began.T < 0)[:, :, None]
    behind = row[:, None] - row[None]
    same = began.T[:, :, None] == began.T[:, None]  # [N, L, L]
    new = ((behind >= 0) & (behind < context))[None] & same
    kept = (began == began[-1:]) & (row[::-1] < context)[:, None]
    return Seen(position, cached, new, jnp.where(kept, position % context, context))


def _rotated(x: jax.Array, position: jax.Array) -> jax.Array:
    """x [L, N, ..., K] turned by its position [L, N]: a product of two depends on their distance.

    Pairs are (i, i + K / 2) (Su et al. 2021, RoPE, in the order of GPT-NeoX and Llama).
    """
    half = x.shape[-1] // 2
    speed = _ROTATION ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = position.astype(jnp.float32)[..., None] * speed[None, None]  # [L, N, K / 2]
    angle = angle.reshape(position.shape + (1,) * (x.ndim - 3) + (half,))
    a, b = x[..., :half], x[..., half:]
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def _attend(query: jax.Array, parts: Sequence[tuple]) -> jax.Array:
    """Means of values by softmax(q k / sqrt K), [L, N, G, R, K].

    Args:
        query: [L, N, G, R, K].
        parts: (keys [N, S, G, K], values alike, bool [N, L, S] whether seen), each.
    """
    scale = 1 / math.sqrt(query.shape[-1])
    scores = [
        jnp.where(seen[:, None, None], jnp.einsum("lngrk,nsgk->ngrls", query, key) * scale, -1e9)
        for key, _, seen in parts
    ]
    whole = jnp.concatenate(scores, axis=-1).astype(jnp.float32)
    share = jax.nn.softmax(whole).astype(query.dtype)
    ends = [sum(x.shape[-1] for x in scores[: i + 1]) for i in range(len(scores) - 1)]
    means = [
        jnp.einsum("ngrls,nsgk->lngrk", own, value)
        for own, (_, value, _) in zip(jnp.split(share, ends, axis=-1), parts, strict=True)
    ]
    return sum(means[1:], means[0])


class Transformer(nn.Module):
    """Blocks of attention and a gated layer, each behind a norm and added to its input."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    hidden: int
    context: int
    action_space: Any
    extra: tuple[str, ...]
    dtype: Any

    @nn.compact
    def __call__(self, carry: Cache, obs: Any, reset: jax.Array):
        """(cache, obs [N] or [L, N], reset alike) -> (cache, Outputs)."""
        single = reset.ndim == 1
        if single:
            obs, reset = jax.tree.map(lambda x: x[None], (obs, reset))
        seen = _seen(carry.position, reset, self.context)
        x, table = self._embedded(obs, reset.ndim)
        shown, keys, values = [], [], []
        for i in range(self.layers):
            old = carry.keys[i], carry.values[i]
            mixed, key, value = self._attention(f"attention_{i}", x, old, seen, single)
            x = x + mixed
            x = x + self._gated(f"gated_{i}", x)
            shown, keys, values = [*shown, x], [*keys, key], [*values, value]
        x = self._norm("norm", x)
        policy = None if table is None else Categorical((x @ table.T).astype(jnp.float32))
        out = heads(self, shown, x, x, policy)
        after = Cache(tuple(keys), tuple(values), seen.position[-1] + 1)
        return after, jax.tree.map(lambda x: x[0], out) if single else out

    def _kernel(self, name: str, shape: tuple, fan_in: int, gain: float = 1.0) -> jax.Array:
        init = nn.initializers.normal(gain / math.sqrt(fan_in))
        return self.param(name, init, shape, jnp.float32).astype(self.dtype)

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        """x over the root of its mean square, times a gain (Zhang & Sennrich 2019, RMSNorm)."""
        gain = self.param(name, nn.initializers.ones, (self.width,), jnp.float32)
        wide = x.astype(jnp.float32)
        size = jnp.sqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + _EPSILON)
        return (wide / size * jnp.broadcast_to(gain, x.shape)).astype(self.dtype)

    def _embedded(self, obs: Any, lead: int) -> tuple[jax.Array, jax.Array | None]:
        """The sum of the fields' vectors [L, N, D], and the table [A, D] that logits share."""
        found, table = jnp.zeros((), self.dtype), None
        fields = jax.tree_util.tree_flatten_with_path(obs)[0]
        for path, x in fields:
            name = jax.tree_util.keystr(path, simple=True, separator="_")
            if is_token(x, lead):
                init = nn.initializers.normal(_EMBEDDING)
                shape = (self.action_space.n, self.width)
                own = self.param(f"embedding_{name}".rstrip("_"), init, shape, jnp.float32)
                own = own.astype(self.dtype)
                vectors = jnp.take(own, x, axis=0, mode="clip")
                table = own if name in ("", "token") else table
            else:
                flat = x.reshape((*x.shape[:lead], -1)).astype(self.dtype)
                kernel = (flat.shape[-1], self.width)
                vectors = flat @ self._kernel(f"input_{name}".rstrip("_"), kernel, kernel[0])
            found = jnp.broadcast_to(found, vectors.shape) + vectors
        return found, table

    def _attention(self, name: str, x: jax.Array, old: tuple, seen: Seen, single: bool):
        """What each row reads of those it sees [L, N, D], and the cache with these rows."""
        size, groups = self.width // self.heads, self.kv_heads
        repeats = self.heads // groups
        x = self._norm(f"{name}_norm", x)
        project = lambda part, shape: jnp.tensordot(
            x, self._kernel(f"{name}_{part}", (self.width, *shape), self.width), 1
        )
        query = _rotated(project("query", (groups, repeats, size)), seen.position)
        key = _rotated(project("key", (groups, size)), seen.position)
        value = project("value", (groups, size))
        rows = jnp.arange(x.shape[1])[None]
        write = lambda cache, new: cache.at[rows, seen.place].set(new, mode="drop")
        cache = write(old[0], key), write(old[1], value)
        if single:  # the row is read from where it is written, so that the cache is not copied
            lies = _places(seen.position[-1], self.context)
            parts = [(*cache, (lies >= 0)[:, None])]
        else:
            new = key.swapaxes(0, 1), value.swapaxes(0, 1)
            parts = [(*old, seen.cached), (*new, seen.new)]
        mixed = _attend(query, parts).reshape((*x.shape[:2], self.width))
        gain = 1 / math.sqrt(2 * self.layers)  # the sum of all blocks begins as large as one
        out = self._kernel(f"{name}_out", (self.width, self.width), self.width, gain)
        return mixed @ out, *cache

    def _gated(self, name: str, x: jax.Array) -> jax.Array:
        """W (silu(U x) * V x) (Shazeer 2020, SwiGLU)."""
        x = self._norm(f"{name}_norm", x)
        inside = (self.width, self.hidden)
        gate, up = (x @ self._kernel(f"{name}_{part}", inside, self.width) for part in "ab")
        gain = 1 / math.sqrt(2 * self.layers)
        down = self._kernel(f"{name}_out", (self.hidden, self.width), self.hidden, gain)
        return (jax.nn.silu(gate) * up) @ down


def is_token(x: Any, lead: int) -> bool:
    """Whether a leaf [..., ] with `lead` leading axes holds whole numbers, one a row."""
    return len(x.shape) == lead and jnp.issubdtype(x.dtype, jnp.integer)


@described
def transformer(
    env: Any,
    layers: int,
    width: int,
    heads: int,
    *,
    context: int,
    kv_heads: int | None = None,
    hidden: int | None = None,
    sliding: bool = False,
    dtype: Any = jnp.float32,
    select: str | None = None,
    extra: Sequence[str] = (),
) -> Policy:
    """A causal transformer, a policy and a value head; its carry is the cache of keys and values.

    Norm before each block, RMSNorm, rotary positions, SwiGLU, grouped-query attention, no biases,
    as in Llama (Touvron et al. 2023; Vaswani et al. 2017; Ainslie et al. 2023). `step` reads the
    cache, `unroll` computes all rows at once; an episode sees nothing of another one.

    Args:
        env: an `Env` or anything with `obs_spec` and `action_space`. A whole number in the
            observation, int32 [], is a token of the actions' vocabulary and has a vector of its
            own; that of the only one, or of the field "token", gives the logits too (tied).
            Everything else is flattened and mapped. The vectors of several fields are added.
        layers, width, heads: blocks, D, and H, a divisor of D with D / H even.
        context: W, rows that a row can see, itself included: `env.max_steps` for whole episodes.
        kv_heads: G, a divisor of H; default H. Heads of a group share keys and values.
        hidden: units of the gated layer; default 8 / 3 of D, in eights.
        sliding: W may be less than an episode, which then sees its last W rows in the first layer.
        dtype: of the computation and the cache; weights and outputs are float32.
        select, extra: as in `mlp`; the layers in `Outputs.extra` are those behind each block.

    Raises:
        UsageError: sizes that do not divide; an episode longer than the cache.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    >>> student = transformer(env, 1, 16, 2, context=8, sliding=True)
    >>> student.initial_carry(2).keys[0].shape
    (2, 8, 2, 8)
    """
    kv_heads = heads if kv_heads is None else kv_heads
    check.count("width", width)
    hidden = 8 * max(1, round(width / 3)) if hidden is None else hidden
    _check_sizes(layers, width, heads, context, kv_heads, hidden)
    check.episodes_fit("networks.transformer", context, sliding, env)
    obs_spec = wrap.field(env.obs_spec, select)
    _check_tokens(obs_spec, env.action_space)
    sizes = layers, width, heads, kv_heads, hidden, context
    network: Any = Transformer(*sizes, env.action_space, extra_heads(extra), dtype)

    def initial_carry(num_envs):
        empty = lambda: tuple(
            jnp.zeros((num_envs, context, kv_heads, width // heads), dtype) for _ in range(layers)
        )
        return Cache(empty(), empty(), jnp.zeros(num_envs, jnp.int32))

    def init(key):
        obs = jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), obs_spec)
        return network.init(unrolled(key), initial_carry(1), obs, jnp.ones(1, jnp.float32))

    policy = Policy(init, initial_carry, network.apply, network.apply)
    return module.wrapped(policy, obs_spec, False, select)


def _check_sizes(layers: Any, width: Any, heads: Any, context: Any, kv_heads: Any, hidden: Any):
    sizes = dict(layers=layers, heads=heads, context=context)
    for name, size in (sizes | dict(kv_heads=kv_heads, hidden=hidden)).items():
        check.count(name, size)
    check.divides("heads", heads, "width", width)
    check.divides("kv_heads", kv_heads, "heads", heads)
    if width // heads % 2:
        raise UsageError(
            f"positions turn pairs of numbers, but width = {width} over heads = {heads} gives "
            f"{width // heads} to each. Take a width of which {2 * heads} is a divisor."
        )


def _check_tokens(obs_spec: Any, action_space: Any) -> None:
    if isinstance(action_space, Discrete):
        return
    if any(is_token(leaf, 0) for leaf in jax.tree.leaves(obs_spec)):
        raise UsageError(
            f"the observation holds a token, but the actions are continuous ({action_space}), so "
            f"there is no vocabulary. Show it as one-hot numbers: envs.view."
        )
