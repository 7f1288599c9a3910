"""Multilayer perceptrons, and the heads that every built-in network ends with."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import Discrete, Outputs, Policy, UsageError
from jaxkd.description import described
from jaxkd.distributions import Categorical, Normal
from jaxkd.networks import module, wrap
from jaxkd.networks.initial import orthogonal

# names of the built-in networks' parameters
_TAKEN = ("actor", "critic", "input", "recurrent", "policy", "value", "log_std")
# gains of the orthogonal initialisation (Andrychowicz et al. 2021)
_HIDDEN, _POLICY, _VALUE = math.sqrt(2), 0.01, 1.0


class Dense(nn.Module):
    """Dense layers, each followed by the activation.

    Observations are flattened, concatenated and cast first.
    """

    hidden: tuple[int, ...]
    activation: Callable
    layer_norm: bool
    dtype: Any
    ranks: tuple[int, ...]  # of the leaves of one observation

    @nn.compact
    def layers(self, obs) -> tuple[jax.Array, ...]:
        """The flat input and every layer's activations, [..., F] each."""
        leaves = [
            x.reshape(x.shape[: x.ndim - rank] + (-1,))
            for x, rank in zip(jax.tree.leaves(obs), self.ranks, strict=True)
        ]
        layers = (jnp.concatenate([leaf.astype(self.dtype) for leaf in leaves], axis=-1),)
        for width in self.hidden:
            x = nn.Dense(width, kernel_init=orthogonal(_HIDDEN), dtype=self.dtype)(layers[-1])
            if self.layer_norm:
                with jax.numpy_dtype_promotion("standard"):  # flax computes its moments in float32
                    x = nn.LayerNorm(dtype=self.dtype)(x)
            layers += (self.activation(x),)
        return layers

    def __call__(self, obs):
        return self.layers(obs)[-1]


class ActorCritic(nn.Module):
    """The heads on one torso, or the value heads on a torso of their own."""

    torso: Callable[..., nn.Module]
    action_space: Any
    separate: bool
    extra: tuple[str, ...]
    dtype: Any

    @nn.compact
    def __call__(self, obs):
        layers = self.torso(name="actor").layers(obs)
        behind = self.torso(name="critic")(obs) if self.separate else layers[-1]
        return heads(self, layers[1:], layers[-1], behind)


def heads(
    module: Any,
    hidden: Sequence[jax.Array],
    features: jax.Array,
    behind: jax.Array,
    policy: Categorical | Normal | None = None,
) -> Outputs:
    """A policy head on `features`, the value heads on what is `behind` them.

    Called inside a module that holds what they need.

    Args:
        module: with action_space, extra (names of further value heads) and dtype; the heads become
            its own.
        hidden: every layer [..., F], shown in `Outputs.extra` as "hidden_0", "hidden_1", ...; jit
            deletes those that nothing reads.
        features, behind: [..., F].
        policy: what the network says already; None: a head on `features`.
    """

    def head(name, x, size, gain):
        layer = nn.Dense(size, kernel_init=orthogonal(gain), dtype=module.dtype, name=name)
        return layer(x).astype(jnp.float32)

    if policy is not None:
        pass
    elif isinstance(module.action_space, Discrete):
        policy = Categorical(head("policy", features, module.action_space.n, _POLICY))
    else:
        mean = head("policy", features, math.prod(module.action_space.shape), _POLICY)
        log_std = module.param("log_std", nn.initializers.zeros, mean.shape[-1:], jnp.float32)
        policy = Normal(mean, jnp.broadcast_to(log_std, mean.shape))
    value = head("value", behind, 1, _VALUE)[..., 0]
    extra = {name: head(name, behind, 1, _VALUE)[..., 0] for name in module.extra}
    return Outputs(
        policy, value, features, extra | {f"hidden_{i}": layer for i, layer in enumerate(hidden)}
    )


def extra_heads(extra: Sequence[str]) -> tuple[str, ...]:
    """The names of further value heads, checked: "hidden_0", ... are layers in `Outputs.extra`."""
    for name in extra:
        if name.startswith("hidden_") or name in _TAKEN:
            raise UsageError(
                f"extra names a head {name!r}, but hidden_0, hidden_1, ... are the layers, and "
                f"{', '.join(_TAKEN)} are taken."
            )
    return tuple(extra)


def actor_critic(env: Any, torso: Callable, *, separate, normalise, dtype, select, extra) -> Policy:
    """The policy of a torso with the heads of `ActorCritic`."""
    network = ActorCritic(torso, env.action_space, separate, extra_heads(extra), dtype)
    return module.feedforward(env, network, normalise=normalise, select=select)


@described
def mlp(
    env: Any,
    hidden: Sequence[int],
    *,
    separate: bool = False,
    activation: Callable = nn.tanh,
    layer_norm: bool = False,
    normalise: bool = False,
    dtype: Any = jnp.float32,
    select: str | None = None,
    extra: Sequence[str] = (),
) -> Policy:
    """A multilayer perceptron with a policy and a value head; orthogonal weights, zero biases.

    Its hidden layers [..., F] are in `Outputs.extra`: "hidden_0", "hidden_1", ... (with
    `separate`, those of the policy's torso).

    Args:
        env: an `Env` or anything with `obs_spec` and `action_space`. Several observation arrays
            are flattened and concatenated.
        hidden: widths of the hidden layers.
        separate: the value has a torso of its own. PPO teachers want it.
        activation: a function of `jax.nn` or `jax.numpy`.
        layer_norm: before each activation (PQN needs it).
        normalise: observations standardised by running statistics, kept beside the weights.
        dtype: of the computation; weights and outputs are float32.
        select: the field of a dict observation that is seen.
        extra: names of further value heads, one a reward stream.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    >>> student = mlp(env, hidden=(44,))
    """
    check.function("activation", activation, "such as jax.nn.tanh")
    hidden = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    for width in hidden:
        check.count("hidden", width)
    if not hidden:
        raise UsageError("hidden must name at least one layer, such as hidden=(64, 64).")
    ranks = tuple(len(x.shape) for x in jax.tree.leaves(wrap.field(env.obs_spec, select)))
    torso = partial(Dense, hidden, activation, layer_norm, dtype, ranks)
    return actor_critic(
        env,
        torso,
        separate=separate,
        normalise=normalise,
        dtype=dtype,
        select=select,
        extra=extra,
    )
