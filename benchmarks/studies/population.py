"""A population that trains itself: learning rates found while training, all members and all seeds
in one compiled call.

    python benchmarks/studies/population.py

MEMBERS learn CartPole by PPO, each with a learning rate of its own, drawn log-uniformly from RATES.
After every round the worst quarter take over the lanes (parameters, optimizer and environments) of
the best quarter, by a gather, and their learning rates times or by FACTOR: population based
training (Jaderberg et al. 2017). Beside it the same members without that, a plain grid. SEEDS
populations; returns while acting, in the last round. Writes results/studies/population.json and
.png.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Given, __doc__, __file__)

import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxkd
from benchmarks import protocol

SEED, SEEDS, MEMBERS, ROUNDS, UPDATES = 3, 8, 16, 10, 10
RATES, FACTOR, HIDDEN = (1e-5, 1.0), 1.5, (64, 64)
ENV = jaxkd.envs.make("CartPole-v1", 32)
POLICY = jaxkd.networks.mlp(ENV, HIDDEN, separate=True)


def learner(rate) -> jaxkd.Algorithm:
    """The learning rate may be traced: a grid is a vmap."""
    return jaxkd.ppo(ENV, POLICY, learning_rate=rate)


def train(state, rate):
    """A round of one member -> (state, its score)."""
    state, metrics = jax.lax.scan(lambda state, _: learner(rate).step(state), state, length=UPDATES)
    return state, jnp.nan_to_num(metrics["return"][-1], neginf=0.0)


def exploit(key, states, rates, scores):
    """The worst quarter become the best quarter, with other learning rates."""
    order, few = jnp.argsort(scores), MEMBERS // 4
    source = jnp.arange(MEMBERS).at[order[:few]].set(order[-few:])
    changed = jnp.where(jax.random.bernoulli(key, shape=(MEMBERS,)), FACTOR, 1 / FACTOR)
    copied = jnp.arange(MEMBERS) != source
    states = jax.tree.map(lambda x: x[source], states)._replace(
        key=states.key
    )  # what is random stays a member's own
    return states, jnp.where(copied, rates[source] * changed, rates)


def population(key, adapts: bool):
    """Scores and learning rates [round, member]."""
    keys = jax.random.split(key, 3)
    low, high = np.log(RATES)
    rates = jnp.exp(jax.random.uniform(keys[0], (MEMBERS,), minval=low, maxval=high))
    states = jax.vmap(lambda key, rate: learner(rate).init(key))(
        jax.random.split(keys[1], MEMBERS), rates
    )

    def one_round(members, key):
        states, rates = members
        states, scores = jax.vmap(train)(states, rates)
        return exploit(key, states, rates, scores) if adapts else (states, rates), (scores, rates)

    return jax.lax.scan(one_round, (states, rates), jax.random.split(keys[2], ROUNDS))[1]


def settings() -> dict:
    values = dict(seed=SEED, seeds=SEEDS, members=MEMBERS, rounds=ROUNDS, updates=UPDATES)
    values |= dict(rates=RATES, factor=FACTOR, num_envs=ENV.num_envs, hidden=HIDDEN)
    return protocol.digest(values)


def main() -> None:
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    keys, results = protocol.keys(SEED, "population", SEEDS), {}
    for name, adapts, colour in (("grid", False, "tab:gray"), ("population", True, "tab:blue")):
        began = time.time()
        scores, rates = map(
            np.asarray, jax.jit(jax.vmap(lambda key, adapts=adapts: population(key, adapts)))(keys)
        )
        last = scores[:, -1]
        results[name] = {
            "mean": last.mean(),
            "median": np.median(last),
            "best": last.max(1).mean(),
            "seconds": time.time() - began,
        }
        results[name] |= {"scores": last.tolist(), "rates": rates[:, -1].tolist()}
        print(
            f"{name:10} members in the last round: mean {last.mean():.1f}, median {np.median(last):.1f}, the best {last.max(1).mean():.1f}"
        )
        axes[0].plot(
            1 + np.arange(ROUNDS),
            scores.mean((0, 2)),
            color=colour,
            label=f"{name}, mean of members",
        )
        axes[1].scatter(rates[:, -1].ravel(), last.ravel(), s=8, color=colour, label=name)
    axes[0].set(xlabel="round", ylabel="return")
    axes[1].set(xscale="log", xlabel="learning rate in the last round", ylabel="return")
    for axis in axes:
        axis.legend(fontsize=7)
    protocol.write("population", {"arms": results, "settings": settings()}, figure)


if __name__ == "__main__":
    main()
