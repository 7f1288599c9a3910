"""Exploration by noise on the weights."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import Policy
from jaxkd.description import described

# numbers of noise between two episodes of one environment: more than there are environments
_EPISODE = 2**16


@described
def noisy(policy: Policy, std: float | jax.Array) -> Policy:
    """`policy` with Gaussian noise on its weights, drawn anew whenever an episode begins.

    Each environment has its own: exploration that is consistent within an episode (Plappert et al.
    2018). What acted is what the losses see: the carry names the noise, so sequences are unrolled
    as for a recurrent student. Judge and save the policy inside, with params["policy"]. Costs one
    set of weights an environment.

    Args:
        std: of the noise on everything that is `trainable`, >= 0; statistics get none.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    >>> explorer = noisy(jaxkd.networks.mlp(env, (8,)), 0.1)
    >>> sorted(explorer.init(jaxkd.seeds(0, 1)[0]))
    ['policy', 'seed']
    """
    check.number("std", std, low=0)

    def init(key):
        key_policy, key_seed = jax.random.split(key)
        # a float, because optimizers and gradients take nothing else
        return {
            "policy": policy.init(key_policy),
            "seed": jax.random.uniform(key_seed, (), jnp.float32),
        }

    def initial_carry(num_envs):
        episode = jnp.arange(num_envs, dtype=jnp.int32)
        return {"policy": policy.initial_carry(num_envs), "episode": episode}

    def step(params, carry, obs, reset):
        # the next episode of an environment has a number that no other one's episode has
        episode = carry["episode"] + jnp.where(reset > 0, _EPISODE, 0)
        keys = _noise_keys(params["seed"], episode)

        def one_environment(key, carry, obs, reset):
            weights = _perturbed(policy, params["policy"], key, std)
            row = jax.tree.map(lambda x: x[None], (carry, obs, reset))  # a batch of one
            answer = policy.step(weights, *row)
            return jax.tree.map(lambda x: x[0], answer)

        inside, out = jax.vmap(one_environment)(keys, carry["policy"], obs, reset)
        return {"policy": inside, "episode": episode}, out

    def unroll(params, carry, obs, reset):
        def one_step(carry, row):
            obs, reset = row
            return step(params, carry, obs, reset)

        return jax.lax.scan(one_step, carry, (obs, reset))

    def observe(params, obs):
        return params | {"policy": policy.observe(params["policy"], obs)}

    def trainable(params):
        # decay or a step on the seed would redraw the noise between acting and learning
        return {"policy": policy.trainable(params["policy"]), "seed": False}

    return Policy(init, initial_carry, step, unroll, observe, trainable)


def _noise_keys(seed: jax.Array, episode: jax.Array) -> jax.Array:
    """A key for each row, [B], of the noise in its episode."""
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(seed), jnp.int32)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(bits), episode)


def _perturbed(policy: Policy, params: Any, key: jax.Array, std: float | jax.Array) -> Any:
    """`params` with noise on what is trained."""
    leaves, structure = jax.tree.flatten(params)
    trained = jax.tree.leaves(policy.trainable(params))
    keys = jax.random.split(key, len(leaves))
    for i, leaf in enumerate(leaves):
        if trained[i]:
            leaves[i] = leaf + std * jax.random.normal(keys[i], leaf.shape, leaf.dtype)
    return jax.tree.unflatten(structure, leaves)
