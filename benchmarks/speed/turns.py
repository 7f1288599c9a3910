"""Is this checkout as fast as another commit? Both run in turns, a process each.

    python benchmarks/speed/turns.py [ROWS] --against COMMIT

The rows of throughput.py, and PPO of an LSTM whose sequences are as long as the rollout and a
quarter of it. Each row starts a pair of processes several times, because a process keeps its luck
with memory for all its life: a ratio is the median over pairs of the median over rounds. Compile
seconds are the processor's, tracing included, the median over pairs. Run it with nothing else
running. Writes results/speed/turns.json.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Turns, __doc__, __file__)

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import protocol

HERE = Path(__file__).resolve().parents[2]
GRIDS = ("Breakout-MinAtar", "Asterix-MinAtar")
FIRST = [("CartPole-v1", 64, 1), ("CartPole-v1", 64, 16), ("CartPole-v1", 1024, 1)]
POINTS = [*FIRST, *((name, 64, 1) for name in ("Acrobot-v1", "Pendulum-v1", *GRIDS))]
UPDATES = {"distillation": 400, "ppo": 80, "lstm32": 20, "lstm8": 20}  # of 64 environments, 1 seed


class Sizes(NamedTuple):
    """What a smaller run has less of."""

    methods: tuple[str, ...] = ("distillation", "ppo")
    points: tuple[tuple[str, int, int], ...] = tuple(POINTS)  # environment, how many, seeds
    memories: tuple[str, ...] = ("lstm32", "lstm8")
    pairs: int = 2  # of processes, a row
    rounds: int = 7
    updates: int | None = None  # a call, default UPDATES


SIZES = {
    "full": Sizes(),
    "cpu": Sizes(points=tuple(FIRST[:1]), memories=(), pairs=1),
    "tiny": Sizes(("distillation",), (("CartPole-v1", 4, 1),), (), 1, 1, 1),
}


def rows(size: Sizes) -> dict[str, tuple]:
    """{name: (method, environment, environments, seeds, updates a call)}."""
    found = {}
    for method in size.methods:
        for name, envs, seeds in size.points:
            work = max(1, envs * seeds // 64) * (20 if name in GRIDS else 1)
            updates = size.updates or max(2, UPDATES[method] // work)
            found[f"{method} {name} {envs}x{seeds}"] = (method, name, envs, seeds, updates)
    for method in size.memories:
        found[f"{method} CartPole-v1 64x1"] = (method, "CartPole-v1", 64, 1, UPDATES[method])
    return found


def begin(tree: Path, row: tuple) -> subprocess.Popen:
    """A process of that tree, which compiles; `ready` waits for it."""
    return subprocess.Popen(
        [sys.executable, str(HERE / "benchmarks/speed/turns_rows.py"), *map(str, row)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tree)},
    )


def ready(child: subprocess.Popen) -> float:
    """Waits until it has compiled and run once; the processor seconds that compiling took."""
    compile_seconds = answer(child)
    child.stdout.readline()
    return compile_seconds


def answer(child: subprocess.Popen) -> float:
    """The next number that it prints."""
    line = child.stdout.readline()
    if not line:
        raise SystemExit(f"a process ended with {child.wait()} before it answered.")
    return float(line)


def call(child: subprocess.Popen) -> float:
    """Seconds of one call."""
    child.stdin.write("\n")
    child.stdin.flush()
    return answer(child)


def measure(row: tuple, before: Path, pairs: int, rounds_each: int) -> dict:
    """Speeds of this tree over that of the other, and compile seconds of both."""
    trees, ratios = {"before": before, "now": HERE}, []
    compiling = {side: [] for side in trees}
    for _ in range(pairs):
        children = {side: begin(tree, row) for side, tree in trees.items()}
        for side, child in children.items():
            compiling[side].append(ready(child))
        rounds = [
            {side: call(child) for side, child in children.items()} for _ in range(rounds_each)
        ]
        ratios.append(float(np.median([r["before"] / r["now"] for r in rounds])))
        for child in children.values():
            child.stdin.close()
            child.wait()
    return {
        "speed_ratio": float(np.median(ratios)),
        "of_each_pair": ratios,
        "compile_seconds": {side: float(np.median(of)) for side, of in compiling.items()},
    }


def told(found: dict) -> str:
    """One row's line."""
    seconds = found["compile_seconds"]
    ratios = " ".join(f"{ratio:.3f}" for ratio in found["of_each_pair"])
    compiling = f"compile {seconds['before']:.1f} -> {seconds['now']:.1f} s"
    return f"{found['speed_ratio']:.3f}  {ratios}  {compiling}"


def main(given: frame.Turns) -> None:
    size, names = frame.sized(given, SIZES), given.names
    pairs = given.pairs or size.pairs
    named = {k: row for k, row in rows(size).items() if not names or any(n in k for n in names)}
    if not named:
        frame.refuse(
            f"no row has {', '.join(names)} in its name. There are: {', '.join(rows(size))}."
        )
    git = ["git", "-C", str(HERE)]
    found = subprocess.run(
        [*git, "rev-parse", "--verify", "--quiet", f"{given.against}^{{commit}}"],
        capture_output=True,
        text=True,
    )
    if found.returncode:
        frame.refuse(f"no commit {given.against} here. Take one that `git log` shows.")
    commit = found.stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        tree = [*git, "worktree"]
        subprocess.run([*tree, "add", "--quiet", "--detach", str(before), commit], check=True)
        try:
            runs = {
                k: partial(measure, row, before, pairs, size.rounds) for k, row in named.items()
            }
            made, _ = protocol.arms("turns", runs, lambda _: [commit, pairs, size], told)
        finally:
            subprocess.run([*tree, "remove", "--force", str(before)], check=True)
    protocol.write("turns", {"against": given.against, "rounds": size.rounds, "rows": made})
    protocol.forget("turns")


if __name__ == "__main__":
    main(GIVEN)
