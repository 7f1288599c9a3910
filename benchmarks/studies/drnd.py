"""Why does DRND explore worse than RND? Its two parts apart, its number of targets, and how well
its predictor is trained.

    python benchmarks/studies/drnd.py

DeepSea of 10 x 10 cells, otherwise as exploration.py: 20 seeds in one call, environment steps until
the greedy policy walks to the goal, BUDGET for a run that never does. alpha weighs DRND's
first part, the error against the mean of its targets, 1 - alpha the second, a pseudo-count.
"trained more" is four times the minibatches and a tenth of the learning rate: the targets are drawn
anew for every row, so the predictor has noise to average out. Writes results/studies/drnd.json and
.png.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Seeded, __doc__, __file__)

import sys
from functools import partial
from typing import NamedTuple

import exploration

import jaxkd
from benchmarks import protocol
from jaxkd import methods, networks, rewards

SEED, BUDGET = 4, 80_000
FAST = exploration.PREDICTOR
MORE = FAST._replace(
    num_minibatches=4 * FAST.num_minibatches, learning_rate=FAST.learning_rate / 10
)
DEFAULT = {"predictor": FAST}
ARMS = {
    "rnd": DEFAULT,
    "rnd, trained more": {"predictor": MORE},
    "drnd": DEFAULT,
    "drnd, alpha 0": DEFAULT | {"alpha": 0.0},
    "drnd, alpha 1": DEFAULT | {"alpha": 1.0},
    "drnd, alpha 1, 2 targets": DEFAULT | {"alpha": 1.0, "num_targets": 2},
    "drnd, trained more": {"predictor": MORE},
    "drnd, alpha 0, trained more": {"predictor": MORE, "alpha": 0.0},
    "drnd, alpha 1, trained more": {"predictor": MORE, "alpha": 1.0},
}


class Sizes(NamedTuple):
    """What a smaller run has less of."""

    arms: tuple[str, ...] = tuple(ARMS)
    seeds: int = 20
    num_envs: int = exploration.NUM_ENVS
    side: int = 10  # cells
    budget: int = BUDGET


SIZES = {
    "full": Sizes(),
    "cpu": Sizes(arms=("rnd", "drnd", "drnd, alpha 1"), seeds=5),
    "tiny": Sizes(("rnd", "drnd, alpha 1, 2 targets"), 1, 16, 4, 64),
}


def settings(size: Sizes = SIZES["full"]) -> dict:
    arms = {arm: own(arm) for arm in ARMS}
    values = {"arms": arms, "seed": SEED, "seeds": size.seeds, "budget": size.budget}
    values |= {"num_envs": size.num_envs, "keywords": exploration.keywords(size.side)}
    return protocol.digest(values | protocol.smaller(size))


def own(arm: str) -> dict:
    """What an arm alone depends on."""
    predictor = protocol.changed(ARMS[arm]["predictor"], exploration.DEFAULTS)
    return ARMS[arm] | {"predictor": predictor}


def main(given: frame.Seeded) -> int:
    size = frame.sized(given, SIZES)
    env, arena = (jaxkd.envs.make("DeepSea-bsuite", n, size=size.side) for n in (size.num_envs, 1))
    policy = networks.mlp(env, (64, 64), separate=True, extra=("bonus",))
    keys = protocol.keys(SEED, "drnd", size.seeds)

    def run(arm: str) -> dict:
        bonus = getattr(rewards, arm.split(",")[0])(terminal=False, stream="bonus", **ARMS[arm])
        keywords = exploration.keywords(size.side)
        algorithm = methods.exploration(env, policy, bonus=bonus, **keywords)
        steps = exploration.steps_to_solve(
            algorithm, policy, arena, size.num_envs * size.side, size.budget, keys=keys
        )
        return exploration.row(steps, size.budget)

    made = settings(size)
    # The other arms' rows may change.
    shared = {k: v for k, v in made.items() if k not in ("arms", "size", "digest")}
    runs = {arm: partial(run, arm) for arm in size.arms}
    found, _ = protocol.arms("drnd", runs, lambda arm: shared | own(arm), exploration.told)
    figure = exploration.draw("10", found, size.budget)
    protocol.write("drnd", {"arms": found, "settings": made}, figure)
    return 0


if __name__ == "__main__":
    sys.exit(main(GIVEN))
