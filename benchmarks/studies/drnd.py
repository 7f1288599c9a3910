"""Why does DRND explore worse than RND? Its two parts apart, its number of targets, and how well
its predictor is trained.

    python benchmarks/studies/drnd.py

DeepSea of 10 x 10 cells, otherwise as exploration.py: SEEDS seeds in one call, environment steps
until the greedy policy walks to the goal, BUDGET for a run that never does. alpha weighs DRND's
first part, the error against the mean of its targets, 1 - alpha the second, a pseudo-count.
"trained more" is four times the minibatches and a tenth of the learning rate: the targets are drawn
anew for every row, so the predictor has noise to average out. Writes results/studies/drnd.json and
.png.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Given, __doc__, __file__)

import time

import exploration

import jaxkd
from benchmarks import protocol
from jaxkd import methods, networks, rewards

SEED, SEEDS, SIZE, BUDGET = 4, 20, 10, 80_000
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


def settings() -> dict:
    arms = {
        arm: given | {"predictor": protocol.changed(given["predictor"], exploration.DEFAULTS)}
        for arm, given in ARMS.items()
    }
    values = {"arms": arms, "seed": SEED, "seeds": SEEDS, "budget": BUDGET}
    values |= {"num_envs": exploration.NUM_ENVS, "keywords": exploration.keywords(SIZE)}
    return protocol.digest(values)


def main() -> None:
    env, arena = (
        jaxkd.envs.make("DeepSea-bsuite", n, size=SIZE) for n in (exploration.NUM_ENVS, 1)
    )
    policy, found = networks.mlp(env, (64, 64), separate=True, extra=("bonus",)), {}
    keys = protocol.keys(SEED, "drnd", SEEDS)
    for arm, given in ARMS.items():
        began = time.time()
        bonus = getattr(rewards, arm.split(",")[0])(terminal=False, stream="bonus", **given)
        algorithm = methods.exploration(env, policy, bonus=bonus, **exploration.keywords(SIZE))
        steps = exploration.steps_to_solve(
            algorithm, policy, arena, exploration.NUM_ENVS * SIZE, BUDGET, keys=keys
        )
        found[arm] = exploration.row(steps, BUDGET)
        print(
            f"{arm:28} solved {found[arm]['solved']}/{SEEDS}, median {found[arm]['median']:.0f} steps, {time.time() - began:.0f} s",
            flush=True,
        )
    figure = exploration.draw("10", found, BUDGET)
    protocol.write("drnd", {"arms": found, "settings": settings()}, figure)


if __name__ == "__main__":
    main()
