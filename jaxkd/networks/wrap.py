"""A policy made of a policy."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import check, moments
from jaxkd.base import Discrete, Policy, UsageError
from jaxkd.description import described, spec
from jaxkd.distributions import TopK, num_actions

_CLIP = 10.0  # of standardised observations, as in Stable-Baselines3's VecNormalize


@described
def normalised(policy: Policy, obs_spec: Any) -> Policy:
    """`policy` on observations standardised by running mean and variance, clipped to [-10, 10].

    The statistics live beside the weights, as params["statistics"]: they are not `trainable`, a
    student's are updated once an update, a teacher's are frozen.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    >>> policy = normalised(jaxkd.networks.mlp(env, hidden=(8,)), env.obs_spec)
    >>> sorted(policy.init(jaxkd.seeds(0, 1)[0]))
    ['policy', 'statistics']
    """

    def init(key):
        return {"policy": policy.init(key), "statistics": moments.empty(obs_spec)}

    def through(call):
        def standardised(params, carry, obs, reset):
            statistics = jax.lax.stop_gradient(params["statistics"])
            return call(params["policy"], carry, moments.standardise(statistics, obs, _CLIP), reset)

        return standardised

    def observe(params, obs):
        return {
            "policy": policy.observe(params["policy"], obs),
            "statistics": moments.update(params["statistics"], obs),
        }

    def trainable(params):
        return {
            "policy": policy.trainable(params["policy"]),
            "statistics": jax.tree.map(lambda x: False, params["statistics"]),
        }

    return policy._replace(
        init=init,
        step=through(policy.step),
        unroll=through(policy.unroll),
        observe=observe,
        trainable=trainable,
    )


@described
def select(policy: Policy, name: str) -> Policy:
    """`policy` on one field of a dict observation.

    A privileged teacher and a blind student select different ones. Raises a UsageError when it is
    first used on an observation without that field.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    >>> policy = select(jaxkd.networks.mlp(env, hidden=(8,)), "vector")
    """

    def through(call):
        return lambda params, carry, obs, reset: call(params, carry, field(obs, name), reset)

    return policy._replace(
        step=through(policy.step),
        unroll=through(policy.unroll),
        observe=lambda params, obs: policy.observe(params, field(obs, name)),
    )


@described
def temper(policy: Policy, temperature: float | jax.Array) -> Policy:
    """`policy` with its distribution tempered.

    Q-values to a soft policy (Rusu et al. 2015: a teacher at 0.01), a bolder behaviour.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    >>> teacher = temper(jaxkd.networks.mlp(env, hidden=(8,)), 0.01)
    """
    check.number("temperature", temperature, low=0, above=True)

    def through(call):
        def tempered(params, carry, obs, reset):
            carry, out = call(params, carry, obs, reset)
            return carry, out._replace(policy=out.policy.temper(temperature))

        return tempered

    return policy._replace(step=through(policy.step), unroll=through(policy.unroll))


@described
def top_k(policy: Policy, k: int) -> Policy:
    """`policy` with the log-probabilities of its k best actions and one of all others together.

    For a teacher with a large vocabulary: [T, B, k] is kept instead of [T, B, A]. The divergences
    of `losses` are then on these k + 1 outcomes, `distributions.TopK`. It labels; to act it would
    have to know all actions.

    Args:
        k: fewer than the actions; at one fewer everything is exact.

    Raises:
        UsageError: for k not below the number of actions, and for continuous ones, at once where
            the policy has a description, else when it is first used.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("addition-3", num_envs=2)
    >>> teacher = top_k(jaxkd.networks.mlp(env, (8,)), 4)
    """
    check.kind("policy", policy, Policy, "a Policy (jaxkd.networks.mlp and others)")
    check.count("k", k)
    made_for = spec(policy)
    if made_for:
        _check_top(k, getattr(made_for.action_space, "n", None))

    def through(call):
        def known(params, carry, obs, reset):
            carry, out = call(params, carry, obs, reset)
            _check_top(k, num_actions(out.policy))
            return carry, out._replace(policy=TopK.of(out.policy, k))

        return known

    return policy._replace(step=through(policy.step), unroll=through(policy.unroll))


def _check_top(k: int, number: int | None) -> None:
    if number is None:
        raise UsageError(f"the top {k} actions are of discrete ones, but the policy's are not.")
    if k >= number:
        raise UsageError(
            f"the top k = {k} of {number} actions are no part of them. Take k <= {number - 1}."
        )


@described
def q(policy: Policy) -> Policy:
    """A Q network of a discrete policy: its logits are Q(s, a), and value = max_a Q(s, a).

    What else it called value is not used. Its greedy action is the policy's own, with the same
    params. What it samples is softmax(Q): temper it before a KL (`temper(q(policy), 0.01)`).

    Raises:
        UsageError: for continuous actions, at once where the policy has a description, else when it
            is first used.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    >>> teacher = temper(q(jaxkd.networks.mlp(env, hidden=(8,), layer_norm=True)), 0.01)
    """
    check.kind("policy", policy, Policy, "a Policy (jaxkd.networks.mlp and others)")
    made_for = spec(policy)
    if made_for and not isinstance(made_for.action_space, Discrete):
        raise UsageError(
            f"a Q network has a value for each of n discrete actions, but the policy acts in "
            f"{made_for.action_space.shape[0]} continuous dimensions."
        )

    def through(call):
        def valued(params, carry, obs, reset):
            carry, out = call(params, carry, obs, reset)
            if not hasattr(out.policy, "logits"):
                raise UsageError(
                    f"a Q network has a value for each of n discrete actions, but the policy is "
                    f"{type(out.policy).__name__}."
                )
            return carry, out._replace(value=jnp.max(out.policy.logits, axis=-1))

        return valued

    return policy._replace(step=through(policy.step), unroll=through(policy.unroll))


def field(obs: Any, name: str | None) -> Any:
    """The field `name` of a dict observation or of its spec; all of it for None."""
    if name is None:
        return obs
    if not isinstance(obs, dict) or name not in obs:
        fields = ", ".join(obs) if isinstance(obs, dict) else "none, it is one array"
        raise UsageError(f"select={name!r}: the observation has no such field (fields: {fields}).")
    return obs[name]
