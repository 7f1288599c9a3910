"""From a flax module to a `Policy`."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import errors

from jaxkd.base import Discrete, Outputs, Policy, UsageError
from jaxkd.cpu import unrolled
from jaxkd.description import Spec as Spec  # what a test or a user gives instead of an Env
from jaxkd.description import described
from jaxkd.distributions import Categorical, Normal
from jaxkd.networks import nnx, wrap


@described
def feedforward(
    env: Any, module: Any, *, normalise: bool = False, select: str | None = None
) -> Policy:
    """A policy from your own flax module, of linen or nnx.

    What the module keeps beside its collection "params" (its `nnx.Param`s) is not trained: running
    averages of a `BatchNorm(use_running_average=True)` stay as they are (right for a teacher that
    was trained elsewhere). A module that must update them, or draw random numbers, is refused.

    Args:
        env: an `Env` or anything with `obs_spec` and `action_space`.
        module: a linen module; or what makes an nnx module, a function (rngs) -> module such as its
            class; or an nnx module, whose arrays every seed begins with. It is called with obs
            [..., *obs_shape] in its own dtype, returns `Outputs`, or (policy parameters, value
            [...]), or policy parameters alone: logits [..., A], or for D continuous actions mean
            and log-std [..., 2 D], or a distribution record. To be saved, its class and functions
            are defined at the top of a module.
        normalise: observations standardised by running statistics, kept beside the weights.
        select: the field of a dict observation that the module sees.

    >>> import jaxkd, flax.linen as nn
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    >>> policy = feedforward(env, nn.Dense(2))                       # logits alone
    >>> from flax import nnx
    >>> policy = feedforward(env, lambda rngs: nnx.Linear(4, 2, rngs=rngs))

    Raises:
        UsageError: it is no module.
    """
    obs_spec = wrap.field(env.obs_spec, select)
    action_space = env.action_space

    if isinstance(module, type) and issubclass(module, nn.Module):
        raise UsageError(
            f"module is the class {module.__name__}: give an instance, such as {module.__name__}()."
        )
    made = _linen(module, obs_spec) if isinstance(module, nn.Module) else nnx.functions(module)

    def step(params, carry, obs, reset):
        return carry, _outputs(made.apply(params, obs), action_space)

    policy = Policy(made.init, lambda num_envs: (), step, step, trainable=made.trainable)
    return wrapped(policy, obs_spec, normalise, select)


def _linen(module: nn.Module, obs_spec: Any) -> nnx.Functions:
    """Of a linen module."""

    def init(key):
        obs = jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), obs_spec)
        return _called(module.init, module, unrolled(key), obs)

    def trainable(params):
        return {
            collection: jax.tree.map(lambda x, own=collection == "params": own, variables)
            for collection, variables in params.items()
        }

    apply = lambda params, obs: _called(module.apply, module, params, obs)
    return nnx.Functions(init, apply, trainable)


def wrapped(policy: Policy, obs_spec: Any, normalise: bool, select: str | None) -> Policy:
    """`policy` on `obs_spec`, standardised where asked for, as the field `select` of an obs."""
    if normalise:
        policy = wrap.normalised(policy, obs_spec)
    return wrap.select(policy, select) if select else policy


def _called(function: Any, module: nn.Module, *args: Any) -> Any:
    """`function(*args)` of a module; what flax says of a module that needs more becomes ours."""
    try:
        return function(*args)
    except (errors.ModifyScopeVariableError, errors.InvalidRngError, ValueError) as error:
        # what BatchNorm and Dropout say where nobody has chosen
        undecided = "must be passed to the constructor or at call time" in str(error)
        if isinstance(error, ValueError) and not undecided:
            raise
        raise UsageError(
            f"{type(module).__name__} updates running averages or draws random numbers (BatchNorm, "
            "SpectralNorm, Dropout), which a policy cannot. Make it with use_running_average=True "
            "and deterministic=True, or use LayerNorm, or normalise=True."
        ) from error


def _outputs(result: Any, action_space: Any) -> Outputs:
    """Outputs from what a module returned, see `feedforward`."""
    if isinstance(result, Outputs):
        return result
    parameters: Any
    if isinstance(result, tuple) and not hasattr(result, "_fields"):
        if len(result) != 2:
            raise UsageError(
                f"a module returns Outputs, (policy parameters, value) or policy parameters; "
                f"got {len(result)} values."
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
            f"a module for {action_space} returns policy parameters [..., {wanted}], "
            f"got {parameters.shape}."
        )
    if isinstance(action_space, Discrete):
        return Outputs(Categorical(parameters), value)
    mean, log_std = jnp.split(parameters, 2, axis=-1)
    return Outputs(Normal(mean, log_std), value)
