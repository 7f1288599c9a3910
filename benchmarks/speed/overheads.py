"""What do checkpoints, lines and the live display cost, and how long is a start?

    python benchmarks/speed/overheads.py

The teacher of `jaxkd distill CartPole-v1`, 16 seeds: a bare `stream`, and the phase as the command
runs it, with a checkpoint every few seconds (six times as often as the command makes one), by
turns. Both are compiled before. Wall seconds are those of a machine that does nothing else; CPU
seconds hardly mind. Then `jaxkd --help`, and the same command twice, to its first update. Writes
results/speed/overheads.json; at most LIMIT of the bare time, with at least CHECKPOINTS of them.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Given, __doc__, __file__)

import io
import os
import statistics
import subprocess
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

    seconds: float = 55.0
    every: float = 5.0  # seconds between two checkpoints
    rounds: int = 2
    helps: int = 5


SIZES = {"full": Sizes(), "cpu": Sizes(20.0, 1.5, 3), "tiny": Sizes(1.0, 0.1, 1, 1)}
STARTS = {"help": 0.45, "second start": 6.0}  # seconds, at most
COMMAND = [sys.executable, "-c", "import sys; from jaxkd.cli import main; sys.exit(main())"]


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


def helped() -> float:
    """Seconds of `jaxkd --help`."""
    began = time.perf_counter()
    subprocess.run([*COMMAND, "--help"], check=True, capture_output=True)
    return time.perf_counter() - began


def started(folder: Path) -> float:
    """Seconds of `jaxkd distill` from its start to its first update, as timing.jsonl tells."""
    seen, began = folder / "timing.jsonl", time.perf_counter()
    asked = ["distill", ENV, "--seeds", str(SEEDS), "--device", "cpu", "--quiet", "--out"]
    process = subprocess.Popen(
        [*COMMAND, *asked, str(folder)],
        env=os.environ | {"XDG_CACHE_HOME": str(folder.parent / "cache")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (seen.exists() and seen.stat().st_size) and process.poll() is None:
        time.sleep(0.02)
    took = time.perf_counter() - began
    process.terminate()
    process.wait()
    return took


def starts(number: int) -> dict[str, float]:
    """Seconds of each of STARTS, and of the first start, whose programs are not kept yet."""
    with tempfile.TemporaryDirectory() as place:
        first, second = (started(Path(place) / name) for name in ("first", "second"))
    helps = [helped() for _ in range(number)]
    return {"help": statistics.median(helps), "first start": first, "second start": second}


def by_turns(size: Sizes) -> dict:
    """Rounds of (wall, CPU) seconds of both arms, and by what share the second one is longer."""
    chosen = presets.preset(ENV)
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
        print(f"(wall, CPU) seconds: bare {plain}, with all {full}", flush=True)
    shares = {
        kind: statistics.median(each["watched"][i] / each["bare"][i] - 1 for each in rounds)
        for i, kind in enumerate(("wall", "cpu"))
    }
    return {"rounds": rounds, "shares": shares, "updates": num_updates}


def gate(found: dict) -> list[str]:
    """What takes too long."""
    counts = [each["checkpoints"] for each in found["rounds"]]
    failed = [
        f"{kind}: {100 * share:.1f} % of the bare time, at most {100 * LIMIT:.0f} %"
        for kind, share in found["shares"].items()
        if share > LIMIT
    ]
    if min(counts) < CHECKPOINTS:
        failed.append(f"{min(counts)} checkpoints, at least {CHECKPOINTS} wanted")
    return failed + [
        f"{name}: {found['starts'][name]:.2f} s, at most {limit}"
        for name, limit in STARTS.items()
        if found["starts"][name] > limit
    ]


def settings(size: Sizes = SIZES["full"]) -> dict:
    """All that the figures depend on beside the code."""
    return protocol.digest({"size": size._asdict(), "seeds": SEEDS, "env": ENV})


def main(given: frame.Given) -> int:
    size = frame.sized(given, SIZES)
    found = by_turns(size) | {"starts": starts(size.helps)}
    failed = gate(found)
    print({kind: f"{100 * share:.2f} %" for kind, share in found["shares"].items()})
    print({name: f"{seconds:.2f} s" for name, seconds in found["starts"].items()})
    protocol.write("overheads", found | {"failed": failed, "settings": settings(size)})
    return protocol.verdict(failed)


if __name__ == "__main__":
    sys.exit(main(GIVEN))
