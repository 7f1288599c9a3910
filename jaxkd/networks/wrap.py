"""A policy made of a policy."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import check, moments
from jaxkd.base import Policy, UsageError

_EPISODE = (
    2**16
)  # numbers of noise between two episodes of one environment: more than there are environments
_CLIP = 10.0  # of standardised observations, as in Stable-Baselines3's VecNormalize


def normalised(policy: Policy, obs_spec: Any) -> Policy:
    """`policy` on observations standardised by their running mean and variance, clipped to [-10, 10].

    The statistics live beside the weights, as params["statistics"]: they get no gradient and no weight decay, a student's
    are updated once an update, a teacher's are frozen.

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

    return policy._replace(
        init=init, step=through(policy.step), unroll=through(policy.unroll), observe=observe
    )


def select(policy: Policy, name: str) -> Policy:
    """`policy` on one field of a dict observation: a privileged teacher and a blind student select different ones.

    Save the policy inside, or make it with `select=`, which is saved; this one has no description. Raises a UsageError when it is first
    used on an observation without that field.

    >>> import jaxkd
    >>> policy = select(jaxkd.networks.mlp(jaxkd.envs.make("CartPole-v1", num_envs=2), hidden=(8,)), "vector")
    """

    def through(call):
        return lambda params, carry, obs, reset: call(params, carry, field(obs, name), reset)

    return policy._replace(
        step=through(policy.step),
        unroll=through(policy.unroll),
        observe=lambda params, obs: policy.observe(params, field(obs, name)),
        description=(),
    )


def temper(policy: Policy, temperature: float | jax.Array) -> Policy:
    """`policy` with its distribution tempered: Q-values to a soft policy (Rusu et al. 2015: a teacher at 0.01), a bolder behaviour.

    >>> import jaxkd
    >>> teacher = temper(jaxkd.networks.mlp(jaxkd.envs.make("CartPole-v1", num_envs=2), hidden=(8,)), 0.01)
    """
    check.number("temperature", temperature, low=0, above=True)

    def through(call):
        def tempered(params, carry, obs, reset):
            carry, out = call(params, carry, obs, reset)
            return carry, out._replace(policy=out.policy.temper(temperature))

        return tempered

    return policy._replace(step=through(policy.step), unroll=through(policy.unroll), description=())


def q(policy: Policy) -> Policy:
    """A Q network of a discrete policy: its logits are Q(s, a), and value = max_a Q(s, a); what else it called value is not used.

    Its greedy action is the policy's own, with the same params. What it samples is softmax(Q): temper it before a KL
    (`temper(q(policy), 0.01)`). Save it as `policy` and wrap what is loaded; the wrapped one has no description.

    Raises:
        UsageError: for continuous actions, at once where the policy has a description, else when it is first used.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    >>> teacher = temper(q(jaxkd.networks.mlp(env, hidden=(8,), layer_norm=True)), 0.01)
    """
    check.kind("policy", policy, Policy, "a Policy (jaxkd.networks.mlp and others)")
    action: tuple = dict(policy.description[1]).get("action", ()) if policy.description else ()
    if action and action[0] != "discrete":
        raise UsageError(
            f"a Q network has a value for each of n discrete actions, but the policy acts in {action[1]} continuous dimensions."
        )

    def through(call):
        def valued(params, carry, obs, reset):
            carry, out = call(params, carry, obs, reset)
            if not hasattr(out.policy, "logits"):
                raise UsageError(
                    f"a Q network has a value for each of n discrete actions, but the policy is {type(out.policy).__name__}."
                )
            return carry, out._replace(value=jnp.max(out.policy.logits, axis=-1))

        return valued

    return policy._replace(step=through(policy.step), unroll=through(policy.unroll), description=())


def noisy(policy: Policy, std: float | jax.Array) -> Policy:
    """`policy` with Gaussian noise on its weights, drawn anew for each environment whenever an episode begins (Plappert et al. 2018).

    Exploration that is consistent within an episode. What acted is what the losses see: the carry names the noise, so sequences are unrolled
    as for a recurrent student. Judge and save the policy inside, with params["policy"]. Costs one set of weights an environment.

    Args:
        std: of the noise on every weight and bias, >= 0; statistics of observations get none.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    >>> explorer = noisy(jaxkd.networks.mlp(env, (8,)), 0.1)
    >>> sorted(explorer.init(jaxkd.seeds(0, 1)[0]))
    ['policy', 'seed']
    """
    check.number("std", std, low=0)

    def init(key):
        inside, seed = jax.random.split(key)
        return {
            "policy": policy.init(inside),
            "seed": jax.random.uniform(seed),
        }  # a float, so that any optimizer takes it; no gradient

    def initial_carry(num_envs):
        return {
            "policy": policy.initial_carry(num_envs),
            "episode": jnp.arange(num_envs, dtype=jnp.int32),
        }

    def perturbed(params, key):
        paths, structure = jax.tree_util.tree_flatten_with_path(params)
        keys = jax.random.split(key, len(paths))
        drawn = [0.0 if "statistics" in jax.tree_util.keystr(path) else std for path, _ in paths]
        rows = zip(paths, keys, drawn, strict=True)
        return jax.tree.unflatten(
            structure,
            [x + scale * jax.random.normal(own, x.shape, x.dtype) for (_, x), own, scale in rows],
        )

    def step(params, carry, obs, reset):
        episode = carry["episode"] + jnp.where(reset > 0, _EPISODE, 0)
        seed = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(params["seed"]), jnp.int32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), episode)

        def one(key, *row):
            alone = jax.tree.map(lambda x: x[None], row)
            return jax.tree.map(
                lambda x: x[0], policy.step(perturbed(params["policy"], key), *alone)
            )

        inside, out = jax.vmap(one)(keys, carry["policy"], obs, reset)
        return {"policy": inside, "episode": episode}, out

    def unroll(params, carry, obs, reset):
        return jax.lax.scan(lambda carry, row: step(params, carry, *row), carry, (obs, reset))

    def observe(params, obs):
        return params | {"policy": policy.observe(params["policy"], obs)}

    return Policy(init, initial_carry, step, unroll, observe)


def field(obs: Any, name: str | None) -> Any:
    """The field `name` of a dict observation or of its spec; all of it for None."""
    if name is None:
        return obs
    if not isinstance(obs, dict) or name not in obs:
        fields = ", ".join(obs) if isinstance(obs, dict) else "none, it is one array"
        raise UsageError(f"select={name!r}: the observation has no such field (fields: {fields}).")
    return obs[name]
