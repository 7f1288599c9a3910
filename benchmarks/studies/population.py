"""A population that trains itself: learning rates found while training, all members and all seeds
in one compiled call.

    python benchmarks/studies/population.py

Members learn CartPole by PPO, each with a learning rate of its own, drawn log-uniformly from RATES.
After every round the worst quarter take over the lanes (parameters, optimizer and environments) of
the best quarter, by a gather, and their learning rates times or by FACTOR: population based
training (Jaderberg et al. 2017). Beside it the same members without that, a plain grid. Eight
populations; returns while acting, in the last round. Writes results/studies/population.json and
.png.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Seeded, __doc__, __file__)

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxkd
from benchmarks import protocol

SEED = 3
RATES, FACTOR, HIDDEN = (1e-5, 1.0), 1.5, (64, 64)


class Sizes(NamedTuple):
    """What a smaller run has less of."""

    seeds: int = 8  # populations
    members: int = 16
    rounds: int = 10
    updates: int = 10  # of a round
    num_envs: int = 32


SIZES = {"full": Sizes(), "cpu": Sizes(), "tiny": Sizes(1, 4, 2, 1, 4)}


def learner(num_envs: int, rate) -> jaxkd.Algorithm:
    """The learning rate may be traced: a grid is a vmap."""
    env = jaxkd.envs.make("CartPole-v1", num_envs)
    return jaxkd.ppo(env, jaxkd.networks.mlp(env, HIDDEN, separate=True), learning_rate=rate)


def train(size: Sizes, state, rate):
    """A round of one member -> (state, its score)."""
    step = learner(size.num_envs, rate).step
    state, metrics = jax.lax.scan(lambda state, _: step(state), state, length=size.updates)
    return state, jnp.nan_to_num(metrics["return"][-1], neginf=0.0)


def exploit(key, states, rates, scores):
    """The worst quarter become the best quarter, with other learning rates."""
    members = len(scores)
    order, few = jnp.argsort(scores), members // 4
    source = jnp.arange(members).at[order[:few]].set(order[-few:])
    changed = jnp.where(jax.random.bernoulli(key, shape=(members,)), FACTOR, 1 / FACTOR)
    copied = jnp.arange(members) != source
    states = jax.tree.map(lambda x: x[source], states)._replace(
        key=states.key
    )  # what is random stays a member's own
    return states, jnp.where(copied, rates[source] * changed, rates)


def population(size: Sizes, adapts: bool, key):
    """Scores and learning rates [round, member]."""
    keys = jax.random.split(key, 3)
    low, high = np.log(RATES)
    rates = jnp.exp(jax.random.uniform(keys[0], (size.members,), minval=low, maxval=high))
    states = jax.vmap(lambda key, rate: learner(size.num_envs, rate).init(key))(
        jax.random.split(keys[1], size.members), rates
    )

    def one_round(members, key):
        states, rates = members
        states, scores = jax.vmap(partial(train, size))(states, rates)
        return exploit(key, states, rates, scores) if adapts else (states, rates), (scores, rates)

    return jax.lax.scan(one_round, (states, rates), jax.random.split(keys[2], size.rounds))[1]


def draw(curves: dict):
    """Scores by round, and the last round's scores by learning rate."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    for (name, (scores, rates)), colour in zip(curves.items(), ("tab:gray", "tab:blue")):
        rounds = 1 + np.arange(scores.shape[1])
        label = f"{name}, mean of members"
        axes[0].plot(rounds, scores.mean((0, 2)), color=colour, label=label)
        last = rates[:, -1].ravel(), scores[:, -1].ravel()
        axes[1].scatter(*last, s=8, color=colour, label=name)
    axes[0].set(xlabel="round", ylabel="return")
    axes[1].set(xscale="log", xlabel="learning rate in the last round", ylabel="return")
    for axis in axes:
        axis.legend(fontsize=7)
    return figure


def settings(size: Sizes = SIZES["full"]) -> dict:
    values = dict(seed=SEED, rates=RATES, factor=FACTOR, hidden=HIDDEN) | size._asdict()
    return protocol.digest(values | protocol.smaller(size))


def main(given: frame.Seeded) -> None:
    size = frame.sized(given, SIZES)
    keys = protocol.keys(SEED, "population", size.seeds)
    run = lambda adapts: jax.jit(jax.vmap(partial(population, size, adapts)))(keys)
    runs = {"grid": partial(run, False), "population": partial(run, True)}
    say = lambda found: f"the last round's mean {np.asarray(found[0])[:, -1].mean():.1f}"
    found, seconds = protocol.arms("population", runs, lambda _: settings(size), say)
    curves = {name: tuple(map(np.asarray, arm)) for name, arm in found.items()}
    results = {}
    for name, (scores, rates) in curves.items():
        last = scores[:, -1]
        figures = {"mean": last.mean(), "median": np.median(last), "best": last.max(1).mean()}
        results[name] = figures | {"seconds": seconds[name]}
        results[name] |= {"scores": last.tolist(), "rates": rates[:, -1].tolist()}
        print(
            f"{name:10} members in the last round:", *(f"{k} {x:.1f}" for k, x in figures.items())
        )
    result = {"arms": results, "settings": settings(size)}
    protocol.write("population", result, draw(curves))


if __name__ == "__main__":
    main(GIVEN)
