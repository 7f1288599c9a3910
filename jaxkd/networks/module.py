"""From a flax module to a `Policy`."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import Box, Discrete, Outputs, Policy, UsageError
from jaxkd.distributions import Categorical, Normal
from jaxkd.networks import wrap


class Spec(NamedTuple):
    """What a network must know of an environment; `Env` has the same two fields."""

    obs_spec: Any  # ShapeDtypeStruct of one observation (a pytree)
    action_space: Any  # Discrete | Box


def feedforward(
    env: Any, module: nn.Module, *, normalise: bool = False, select: str | None = None
) -> Policy:
    """A policy from your own flax module.

    Args:
        env: an `Env` or anything with `obs_spec` and `action_space`.
        module: called with obs [..., *obs_shape] in its own dtype, returns `Outputs`, or (policy parameters, value [...]), or
            policy parameters alone: logits [..., A], or for D continuous actions mean and log-std [..., 2 D], or a
            distribution record.
        normalise: observations standardised by running statistics, kept beside the weights.
        select: the field of a dict observation that the module sees.

    >>> import jaxkd, flax.linen as nn
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    >>> policy = feedforward(env, nn.Dense(2))                       # logits alone
    """
    return build(env, module, normalise=normalise, select=select)


def build(
    env: Any, module: nn.Module, *, normalise: bool, select: str | None, description: tuple = ()
) -> Policy:
    """`feedforward` for the factories of this folder, which also say how to make the policy again."""
    obs_spec = wrap.field(env.obs_spec, select)
    action_space = env.action_space

    def init(key):
        obs = jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), obs_spec)
        return module.init(key, obs)

    def apply(params, obs):
        return _outputs(module.apply(params, obs), action_space)

    def step(params, carry, obs, reset):
        return carry, apply(params, obs)

    return wrapped(
        Policy(init, lambda num_envs: (), step, step, description=description),
        obs_spec,
        normalise,
        select,
    )


def wrapped(policy: Policy, obs_spec: Any, normalise: bool, select: str | None) -> Policy:
    """`policy` on `obs_spec`, standardised where asked for, as the field `select` of a dict observation."""
    if normalise:
        policy = wrap.normalised(policy, obs_spec)
    return (
        wrap.select(policy, select)._replace(description=policy.description) if select else policy
    )


def describe(name: str, env: Any, **keywords: Any) -> tuple:
    """The hashable description of a built-in policy: (factory, ((keyword, plain value), ...))."""
    plain = {k: getattr(v, "__name__", v) if callable(v) else v for k, v in keywords.items()}
    plain["dtype"] = jnp.dtype(keywords["dtype"]).name
    obs, action = check.spaces(env.obs_spec, env.action_space)
    return name, (("obs", obs), ("action", action), *plain.items())


def spec_of(description: tuple) -> Spec:
    """The observation and action specification a description was made for; dicts of arrays come back as dicts.

    >>> spec_of(("mlp", (("obs", (("", (4,), "float32"),)), ("action", ("discrete", 2))))).action_space
    Discrete(n=2)
    """
    keywords = dict(description[1])
    kind, *size = keywords["action"]
    obs: Any = {}
    for path, shape, dtype in keywords["obs"]:
        spec = jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
        if not path:
            obs = spec
            break
        *folders, name = path.split("/")
        place = obs
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = spec
    return Spec(obs, Discrete(*size) if kind == "discrete" else Box(tuple(size)))


def _outputs(result: Any, action_space: Any) -> Outputs:
    """Outputs from what a module returned, see `feedforward`."""
    if isinstance(result, Outputs):
        return result
    parameters: Any
    if isinstance(result, tuple) and not hasattr(result, "_fields"):
        if len(result) != 2:
            raise UsageError(
                f"a module returns Outputs, (policy parameters, value) or policy parameters; got {len(result)} values."
            )
        parameters, value = result
    else:
        parameters, value = result, ()
    if hasattr(parameters, "log_prob"):
        return Outputs(parameters, value)
    wanted = (
        action_space.n if isinstance(action_space, Discrete) else 2 * math.prod(action_space.shape)
    )
    if parameters.shape[-1] != wanted:
        raise UsageError(
            f"a module for {action_space} returns policy parameters [..., {wanted}], got {parameters.shape}."
        )
    if isinstance(action_space, Discrete):
        return Outputs(Categorical(parameters), value)
    mean, log_std = jnp.split(parameters, 2, axis=-1)
    return Outputs(Normal(mean, log_std), value)
