"""What the children of `peers.py` share: the configuration, and one line of JSON for every
measurement. Standard library only.

python with_<library>.py WORK UPDATES # answers when it is ready, then measures UPDATES updates for
every line it reads python with_<library>.py WORK verify # answers once: what was learnt, and
whether that is enough
"""

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

NUM_ENVS, UNROLL_LENGTH, NUM_MINIBATCHES = int(os.environ.get("PEER_ENVS", 64)), 32, 4
STEPS = NUM_ENVS * UNROLL_LENGTH  # of the environment, an update
TEACHER, STUDENT = (64, 64), (44,)
PPO_EPOCHS, PPO_RATE, CLIP_NORM, ENTROPY = 4, 2.5e-4, 0.5, 0.01
KD_RATE = 1e-3
PPO_TRAINING, PPO_GOAL = (
    300_000,
    450,
)  # verified: steps with a higher learning rate, and the return of CartPole's 500 to be reached
KD_UPDATES, KD_SHARE, KD_FALL = (
    200,
    0.95,
    10,
)  # verified: updates, share of the teacher's return, and the fall of the loss to be reached

ANSWERS, sys.stdout = sys.stdout, sys.stderr  # what libraries print goes to the log


class Work(NamedTuple):
    """One thing to measure."""

    build: Callable[
        [int], tuple[Callable[[], Any], float]
    ]  # updates -> (what makes them and waits for the end, seconds of compiling)
    verify: Callable[[], dict] | None = None  # -> figures, with "learnt": bool


def answer(**figures: Any) -> None:
    print(json.dumps(figures), file=ANSWERS, flush=True)


def main(works: dict[str, Work], packages: list[str]) -> None:
    """Answers for one of the works; the first measurement warms up and is not told."""
    name, mode = sys.argv[1:]
    work, versions = works[name], {package: metadata.version(package) for package in packages}
    if mode == "verify":
        assert work.verify is not None, f"{name} is verified elsewhere"
        return answer(**work.verify(), versions=versions)
    run, compile_seconds = work.build(int(mode))
    run()
    answer(compile_seconds=compile_seconds, versions=versions)
    for _ in sys.stdin:
        began = time.perf_counter()
        run()
        answer(steps=int(mode) * STEPS, seconds=time.perf_counter() - began)
