"""What do checkpoints, lines and the live display cost?

    python benchmarks/speed/overheads.py

The teacher of `jaxkd distill CartPole-v1`, 16 seeds: a bare `stream`, and the phase as the command
runs it, with a checkpoint every EVERY seconds (the command's default), by turns. Both are compiled
before. Wall seconds are those of a machine that does nothing else; CPU seconds hardly mind. Writes
results/speed/overheads.json; at most LIMIT of the bare time, with at least CHECKPOINTS of them.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Given, __doc__, __file__)

import io
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import rich.console

import jaxkd
from benchmarks import protocol
from jaxkd import presets
from jaxkd.checkpoint import Checkpoints
from jaxkd.cli import directory, log, phases, progress, training

ENV, SEEDS, LIMIT, CHECKPOINTS = "CartPole-v1", 16, 0.02, 10


class Sizes(NamedTuple):
    """How long each arm takes, about, and how often."""

    seconds: float = 330.0
    every: float = 30.0  # seconds between two checkpoints
    rounds: int = 3


SIZES = {"full": Sizes(), "cpu": Sizes(20.0, 1.5, 3), "tiny": Sizes(1.0, 0.1, 1)}


def job(folder: Path, every: float) -> phases.Job:
    """What a phase is given by the command."""
    shown = progress.Progress(rich.console.Console(file=io.StringIO()), quiet=False)
    run, lines = directory.Directory(folder), log.Log(folder / log.METRICS)
    keys = jaxkd.seeds(0, SEEDS)
    return phases.Job(run, shown, keys, lambda: 0.0, lambda: "", lines, "settings", every)


def bare(many, keys, num_updates: int) -> None:
    for state, metrics in jaxkd.stream(many, keys, num_updates, chunk_size=1):
        pass
    jax.block_until_ready((state, metrics))


def watched(many, num_updates: int, steps: int, every: float) -> int:
    """Trains as the command does; returns how many checkpoints were written."""
    saved = []
    save = Checkpoints.save

    def counted(self, state, step, **about):
        saved.append(step)
        save(self, state, step, **about)

    Checkpoints.save = counted
    try:
        with tempfile.TemporaryDirectory() as folder:
            alive = np.ones(SEEDS, bool)
            given = dict(alive=alive, steps_per_update=steps)
            training.train(job(Path(folder), every), "teacher", many, num_updates, **given)
    finally:
        Checkpoints.save = save
    return len(saved)


def timed(work) -> tuple[float, float]:
    """(wall, CPU) seconds of it."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def main(given: frame.Given) -> int:
    size, chosen = frame.sized(given, SIZES), presets.preset(ENV)
    env = presets.make_env(ENV, chosen)
    algorithm, _ = presets.teaching(env, presets.teacher_network(env, chosen), chosen)
    many, keys = jaxkd.lanes(algorithm), training.phase_keys(jaxkd.seeds(0, SEEDS), "teacher")
    steps = env.num_envs * chosen.unroll_length
    bare(many, keys, 2)
    watched(many, 2, steps, 0.0)
    wall, _ = timed(lambda: bare(many, keys, 20))
    num_updates = max(20, round(20 * size.seconds / wall))
    rounds, counts = [], []
    for _ in range(size.rounds):
        plain = timed(lambda: bare(many, keys, num_updates))
        full = timed(lambda: counts.append(watched(many, num_updates, steps, size.every)))
        rounds.append({"bare": plain, "watched": full, "checkpoints": counts[-1]})
        print(
            f"bare {plain[0]:.2f} s, with all {full[0]:.2f} s; CPU {plain[1]:.2f} s, {full[1]:.2f} "
            "s"
        )
    shares = {
        kind: statistics.median(each["watched"][i] / each["bare"][i] - 1 for each in rounds)
        for i, kind in enumerate(("wall", "cpu"))
    }
    failed = [
        f"{kind}: {100 * share:.1f} % of the bare time, at most {100 * LIMIT:.0f} %"
        for kind, share in shares.items()
        if share > LIMIT
    ]
    if min(counts) < CHECKPOINTS:
        failed.append(f"{min(counts)} checkpoints, at least {CHECKPOINTS} wanted")
    print({kind: f"{100 * share:.2f} %" for kind, share in shares.items()}, counts)
    settings = protocol.digest({"size": size._asdict(), "seeds": SEEDS, "env": ENV})
    result = {"rounds": rounds, "shares": shares, "updates": num_updates, "failed": failed}
    protocol.write("overheads", result | {"settings": settings})
    return protocol.verdict(failed)


if __name__ == "__main__":
    sys.exit(main(GIVEN))
