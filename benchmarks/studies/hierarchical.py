"""Hierarchical value distillation against plain regression on Q-values, in FourRooms with random
starts and goals.

    python benchmarks/studies/hierarchical.py                  # or some of the networks: 32 128,128

The teacher is the exact Q* of every goal by value iteration (gamma .99). Students see uniform
(position, goal) pairs, 512 an update for 5000 updates, and are scored by the share of 1024 episodes
whose goal they reach within 60 slippery steps, acting greedily; 10 seeds, one hidden layer of 32 or
128 (the gate), and two of each beside them. Arms: q_mse regresses Q; hvd_mse and hvd_kl add a
global value term and a local advantage term; advantage_only drops the global one; policy_kl is
plain KL to softmax(Q / .01). Writes results/studies/hierarchical.json and .png.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Study, __doc__, __file__)

import json
import sys
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxkd
from benchmarks import protocol
from jaxkd import losses, networks
from jaxkd.base import Discrete, Env, Outputs, Policy, TimeStep
from jaxkd.distributions import Categorical

GAMMA, FAIL, SIZE, TEMPERATURE = 0.99, 1 / 3, 13, 0.01
BATCH, UPDATES, LEARNING_RATE, SEEDS, SEED, EPISODES, LIMIT = 512, 5000, 2e-3, 10, 3, 1024, 60
HIDDEN = ((32,), (128,), (32, 32), (128, 128))
GATED = HIDDEN[:2]
MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])
ARMS = {
    "q_mse": lambda: {"q": losses.logit_mse()},
    "hvd_mse": lambda: {
        "global": losses.value_mse(normalise=True),
        "local": losses.advantage_mse(),
    },
    "hvd_kl": lambda: {
        "global": losses.value_mse(normalise=True),
        "local": losses.advantage_kl(TEMPERATURE),
    },
    "advantage_only": lambda: {"local": losses.advantage_mse()},
    "policy_kl": lambda: {"kl": losses.forward_kl()},  # of the tempered teacher
}
GAIN = 0.20  # of success, hvd_mse or hvd_kl over q_mse at both gated sizes


class Sizes(NamedTuple):
    """What a smaller run has less of."""

    hidden: tuple[tuple[int, ...], ...] = HIDDEN
    arms: tuple[str, ...] = tuple(ARMS)
    batch: int = BATCH
    updates: int = UPDATES
    seeds: int = SEEDS
    episodes: int = EPISODES


SIZES = {
    "full": Sizes(),
    "cpu": Sizes(hidden=GATED[:1], seeds=3),
    "tiny": Sizes(((32,),), ("q_mse", "hvd_mse", "hvd_kl"), 4, 1, 1, 2),
}


def free_cells() -> np.ndarray:
    """The free cells [n, 2], read off the environment by resetting it often."""
    env = jaxkd.envs.make("FourRooms-misc", 8192, resample_init_pos=True, resample_goal_pos=True)
    return np.unique(np.asarray(env.reset(jax.random.key(0))[1][:, :2], int), axis=0)


def optimal(cells: np.ndarray) -> np.ndarray:
    """Q* as a table [13, 13, 13, 13, 4] over (position, goal), by value iteration; 0 at walls and
    goals.
    """
    n = len(cells)
    index = -np.ones((SIZE, SIZE), int)
    index[tuple(cells.T)] = np.arange(n)
    moved = index[tuple((cells[:, None] + MOVES).transpose(2, 0, 1))]  # [n, 4], -1 into a wall
    moved = np.where(moved < 0, np.arange(n)[:, None], moved)
    goal = np.eye(n, dtype=bool)  # [cell, goal]
    q = np.zeros((n, n, 4))
    while True:
        value = np.where(goal, 1.0, GAMMA * q.max(-1) * ~goal)  # of arriving, [cell, goal]
        arriving = value[moved].transpose(0, 2, 1)  # [n, goal, 4]
        better = (1 - FAIL * 4 / 3) * arriving + FAIL * 4 / 3 * arriving.mean(-1, keepdims=True)
        if np.abs(better - q).max() < 1e-10:
            break
        q = better
    table = np.zeros((SIZE,) * 4 + (4,))
    first, second = (cells[np.repeat(np.arange(n), n)], cells[np.tile(np.arange(n), n)])
    table[(*first.T, *second.T)] = np.where(goal[..., None], 0.0, q).reshape(n * n, 4)
    return table


def tabular() -> Policy:
    """A Q teacher whose params are the table."""

    def step(table, carry, obs, reset):
        q = table[tuple(jnp.moveaxis(obs.astype(jnp.int32), -1, 0))]
        return carry, Outputs(Categorical(q), jnp.max(q, axis=-1))

    return Policy(lambda key: jnp.zeros((SIZE,) * 4 + (4,)), lambda num_envs: (), step, step)


def pairs(cells: np.ndarray, batch: int) -> Env:
    """Every step shows a new uniform pair of two different cells: supervised learning on the
    engine.
    """
    places = jnp.asarray(cells, jnp.float32)

    def draw(key):
        start, apart = (
            jax.random.randint(k, (batch,), low, len(cells))
            for k, low in zip(jax.random.split(key), (0, 1), strict=True)
        )
        return jnp.concatenate([places[start], places[(start + apart) % len(cells)]], axis=-1)

    def step(key, env_state, action):
        obs, zeros = draw(key), jnp.zeros(batch)
        return env_state, TimeStep(obs, obs, zeros, zeros + 1, zeros)

    spec = jax.ShapeDtypeStruct((4,), jnp.float32)
    return Env(
        lambda key: (jnp.zeros(batch), draw(key)),
        step,
        batch,
        spec,
        Discrete(4),
        1,
        truncates=False,
        name="FourRooms pairs",
    )


def arena(episodes: int) -> Env:
    """Where students and the teacher play: random starts and goals."""
    return jaxkd.envs.make(
        "FourRooms-misc", episodes, resample_init_pos=True, resample_goal_pos=True, max_steps=LIMIT
    )


def scores(student: Policy, params, key, table, *, episodes: int, by_value: bool):
    """Share of goals reached, and the root mean squared error of the student's value (or of its
    largest Q) over all pairs.
    """
    played = jaxkd.evaluate(arena(episodes), student, params, key, num_episodes=episodes)
    won = played.returns.mean()
    places = np.nonzero(table.max(-1))
    both, values = np.stack(places, -1).astype(np.float32), table.max(-1)[places].astype(np.float32)
    out = student.unroll(params, (), jnp.asarray(both[None]), jnp.zeros((1, len(both))))[1]
    estimate = out.value[0] if by_value else out.policy.logits.max(-1)[0]
    return won, jnp.sqrt(jnp.mean(jnp.square(estimate - values)))


def experiment(cells, table, hidden: tuple[int, ...], size: Sizes) -> dict:
    """Success and value error of every arm, by seed."""
    env = pairs(cells, size.batch)
    student = networks.mlp(env, hidden, activation=jax.nn.relu, normalise=True)
    judge = partial(scores, student, table=table, episodes=size.episodes)

    def run(name: str) -> dict:
        terms = ARMS[name]()
        teacher = networks.temper(tabular(), TEMPERATURE) if name == "policy_kl" else tabular()
        sizes = dict(unroll_length=1, num_minibatches=1, optimizer=optax.adam(LEARNING_RATE))
        kd = jaxkd.distill(env, student, teacher, losses=terms, **sizes)
        keys, values = jaxkd.seeds(SEED, size.seeds), jnp.asarray(table, jnp.float32)
        state, _ = jaxkd.run(jaxkd.lanes(kd), keys, size.updates, values)
        judged = jax.jit(jax.vmap(partial(judge, by_value=name != "q_mse")))
        won, error = (
            np.asarray(x, np.float64)
            for x in judged(state.params, jaxkd.seeds(SEED + 100, size.seeds))
        )
        success = {"success": won.mean(), "interval": jaxkd.interval(won, statistic=np.mean)}
        found = success | {"seeds": won.tolist()}
        return found | ({"value_rmse": error.mean()} if {"q", "global"} & set(terms) else {})

    runs = {name: partial(run, name) for name in size.arms}
    made = lambda _: settings(size)
    return protocol.arms(f"hierarchical/{_label(hidden)}", runs, made, told)[0]


def told(row: dict) -> str:
    """One arm's line."""
    low, high = np.round(row["interval"], 3)
    return (
        f"success {row['success']:.3f} [{low}, {high}], V rmse {row.get('value_rmse', np.nan):.4f}"
    )


def gate(result: dict) -> list[str]:
    """What does not hold; empty: passed."""
    failed = []
    for hidden in [hidden for hidden in GATED if _label(hidden) in result["hidden"]]:
        rows = result["hidden"][_label(hidden)]
        gain = (
            max(rows[name]["success"] for name in ("hvd_mse", "hvd_kl")) - rows["q_mse"]["success"]
        )
        if gain < GAIN:
            failed.append(
                f"hidden {_label(hidden)}: hierarchical value distillation gains {gain:+.3f}, "
                f"wanted {GAIN:+.2f}"
            )
    return failed


def _label(hidden: tuple[int, ...]) -> str:
    return ",".join(map(str, hidden))


def draw(result: dict):
    figure, axes = plt.subplots(
        1,
        len(result["hidden"]),
        figsize=(4 * len(result["hidden"]), 3.4),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    ordered = sorted(result["hidden"], key=[_label(hidden) for hidden in HIDDEN].index)
    for hidden, axis in zip(ordered, axes[0], strict=True):
        rows = result["hidden"][hidden]
        for place, row in enumerate(rows.values()):
            axis.bar(place, row["success"], color="tab:blue", alpha=0.5)
            axis.plot([place] * len(row["seeds"]), row["seeds"], "k.", ms=3)
        axis.set(
            title=f"hidden {hidden}", xticks=range(len(rows)), ylabel="goals reached in 60 steps"
        )
        axis.set_xticklabels(rows, rotation=20, fontsize=8)
    return figure


def settings(size: Sizes = SIZES["full"]) -> dict:
    values = protocol.constants(globals(), int | float | tuple)
    return protocol.digest(values | protocol.smaller(size))


def main(given: frame.Study) -> int:
    size = frame.sized(given, SIZES)
    labels = {_label(hidden): hidden for hidden in size.hidden}
    names = frame.chosen(given.names, tuple(labels))
    cells = free_cells()
    table = optimal(cells)
    best = jaxkd.evaluate(
        arena(size.episodes),
        tabular(),
        jnp.asarray(table, jnp.float32),
        jax.random.key(0),
        num_episodes=size.episodes,
    ).returns.mean()
    print(f"{len(cells)} free cells; the teacher reaches {float(best):.3f}")
    file = protocol.RESULTS / "studies" / "hierarchical.json"
    partly = given.names and size == Sizes() and file.exists()
    before = json.loads(file.read_text())["hidden"] if partly else {}
    result: dict = {"settings": settings(size), "teacher": float(best), "hidden": before}
    for name in names:
        result["hidden"][name] = experiment(cells, table, labels[name], size)
    result["failed"] = gate(result)
    protocol.write("hierarchical", result, draw(result))
    return protocol.verdict(result["failed"])


if __name__ == "__main__":
    sys.exit(main(GIVEN))
