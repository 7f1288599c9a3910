"""Where a bonus is paid, over training: every cell of DeepSea and of FourRooms, looked at.

    python benchmarks/studies/bonus_maps.py

PPO with `rewards.rnd` (exploration.py's settings, its PREDICTOR; FourRooms with the preset's), one
seed; before the first update and after a quarter, a half and all of UPDATES the bonus that each
cell would be paid now, beside the visits that a `rewards.count` of weight 0 has counted until then.
Prints the rank correlation of the two, over the cells that can be reached: a bonus that pays for
novelty has it near -1. Writes results/studies/bonus_maps.json and .png.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Given, __doc__, __file__)

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from exploration import DEFAULTS, NUM_ENVS, PREDICTOR, keywords

import jaxkd
from benchmarks import protocol
from jaxkd import methods, networks, presets, rewards
from jaxkd.base import Batch, Context
from jaxkd.rewards import Predictor

SEED, CHECKS = 3, 4
UPDATES = {"DeepSea-bsuite": 60, "FourRooms-misc": 72}


class Sizes(NamedTuple):
    """What a smaller run has less of."""

    side: int = 14  # cells of DeepSea
    num_envs: int = NUM_ENVS  # in DeepSea
    updates: dict[str, int] = UPDATES
    predictor: Predictor = PREDICTOR
    preset: dict = {}  # of FourRooms


SIZES = {
    "full": Sizes(),
    "cpu": Sizes(),
    "tiny": Sizes(
        side=4,
        num_envs=4,
        updates=dict.fromkeys(UPDATES, 4),
        predictor=PREDICTOR._replace(num_minibatches=1, hidden=(4,), features=4),
        preset=protocol.TINY_PRESET,
    ),
}


def deep_sea(size: Sizes) -> tuple:
    """(env, keywords, the observation of every cell, its number, shape of the map, cells that can
    be reached).
    """
    side = size.side
    cells = jnp.eye(side**2).reshape(-1, side, side)
    env = jaxkd.envs.make("DeepSea-bsuite", size.num_envs, size=side)
    reached = np.tril(np.ones((side, side), bool)).ravel()
    reached[0] = False  # nothing leads to the start
    return (
        env,
        keywords(side),
        cells,
        lambda obs: jnp.argmax(obs.reshape(-1)),
        (side, side),
        reached,
    )


def four_rooms(size: Sizes) -> tuple:
    """The same; a cell is where the agent stands, the goal stays."""
    p = protocol.preset("FourRooms-misc", size)
    env = presets.make_env("FourRooms-misc", p)
    side = 13
    goal = env.reset(jax.random.key(SEED))[1][0, 2:]
    where = jnp.stack(jnp.meshgrid(jnp.arange(side), jnp.arange(side), indexing="ij"), -1).reshape(
        -1, 2
    )
    cells = jnp.concatenate([where, jnp.broadcast_to(goal, where.shape)], -1)
    given = dict(
        unroll_length=p.unroll_length,
        learning_rate=p.learning_rate,
        num_epochs=p.num_epochs,
        entropy=p.entropy,
    )
    return env, given, cells, lambda obs: obs[0] * side + obs[1], (side, side), None


MAPS = {"DeepSea-bsuite": deep_sea, "FourRooms-misc": four_rooms}


def maps(name: str, size: Sizes) -> list[tuple[np.ndarray, np.ndarray]]:
    """(bonus, visits), each of the map's shape, at every check."""
    env, given, cells, number, shape, _ = MAPS[name](size)
    normal = name != "DeepSea-bsuite"
    policy = networks.mlp(env, (64, 64), separate=True, extra=("bonus",), normalise=normal)
    bonus = rewards.rnd(
        predictor=size.predictor._replace(normalise=normal), terminal=False, stream="bonus"
    )
    counted = {"visits": rewards.count(number, len(cells), coef=0.0)}
    algorithm = methods.exploration(env, policy, bonus=bonus, rewards=counted, **given)
    here = dict.fromkeys(Batch._fields, ()) | {
        "next_obs": cells[None],
        "terminated": jnp.zeros((1, len(cells))),
    }

    def look(state, key):
        paid = bonus.update(
            jnp.zeros((1, len(cells))),
            state.rewards["bonus"],
            Batch(**here),
            Context(jnp.int32(0), jnp.float32(0), (), key),
        )
        return paid[0][0].reshape(shape), state.rewards["visits"].reshape(shape)

    key = protocol.keys(SEED, f"map {name}", 1)[0]
    state = jax.jit(algorithm.init)(key)
    found, looked, done = [], jax.jit(look), 0
    for check in (0, 1, 2, CHECKS):
        until = size.updates[name] * check // CHECKS
        if until > done:
            *_, (state, _) = jaxkd.stream(
                algorithm, key, until - done, chunk_size=until - done, state=state
            )
            done = until
        found.append(tuple(np.asarray(x) for x in looked(state, key)))
    return found


def ranks(bonus: np.ndarray, visits: np.ndarray, cells: np.ndarray) -> float:
    """Rank correlation over the cells; nan before anything was visited."""
    from scipy.stats import spearmanr

    return (
        float(spearmanr(bonus.ravel()[cells], visits.ravel()[cells]).statistic)
        if visits.any()
        else float("nan")
    )


def show(axis, values: np.ndarray, title: str) -> None:
    """One map with its colours."""
    image = axis.imshow(values)
    axis.figure.colorbar(image, ax=axis, shrink=0.8)
    axis.set(title=title, xticks=[], yticks=[])
    axis.title.set_fontsize(8)


def add(axes, name: str, found: list, reached: np.ndarray | None, size: Sizes) -> dict:
    """Draws one environment's maps; its figures."""
    cells = reached if reached is not None else found[-1][1].ravel() > 0
    result: dict = {"bonus": [], "visits": []}
    result["rank_correlation"] = [ranks(*pair, cells) for pair in found]
    for column, (bonus, visits) in enumerate(found):
        walls = ~cells.reshape(bonus.shape)
        done = size.updates[name] * (0, 1, 2, CHECKS)[column] // CHECKS
        where = f"{name.split('-')[0]}, update {done}"
        show(axes[0, column], np.where(walls, np.nan, bonus), f"{where}: bonus")
        logs = np.where(walls, np.nan, np.log1p(visits))
        show(axes[1, column], logs, f"{where}: log visits")
        result["bonus"].append(np.round(bonus, 6).tolist())
        result["visits"].append(visits.tolist())
    told = np.round(result["rank_correlation"], 2)
    print(name, "rank correlation of bonus and visits", told)
    return result


def settings(size: Sizes = SIZES["full"]) -> dict:
    values = {"seed": SEED, "size": size.side, "updates": size.updates, "num_envs": size.num_envs}
    values |= {"keywords": keywords(size.side), "rooms": four_rooms(size)[1]}
    values["predictor"] = protocol.changed(size.predictor, DEFAULTS)
    return protocol.digest(values | protocol.smaller(size))


def main(given: frame.Given) -> None:
    size = frame.sized(given, SIZES)
    runs = {name: partial(maps, name, size) for name in MAPS}
    found, _ = protocol.arms("bonus_maps", runs, lambda _: settings(size))
    figure = plt.figure(figsize=(11, 9.6), layout="constrained")
    axes, results = figure.subplots(4, 4), {}
    for row, name in enumerate(MAPS):
        pairs = [(np.asarray(bonus), np.asarray(visits)) for bonus, visits in found[name]]
        reached = MAPS[name](size)[5]
        results[name] = add(axes[2 * row : 2 * row + 2], name, pairs, reached, size)
    protocol.write("bonus_maps", {"maps": results, "settings": settings(size)}, figure)


if __name__ == "__main__":
    main(GIVEN)
