"""Does a run survive whatever stops it, and is the result the same to the last bit?

    python benchmarks/studies/reliability.py                   # all rows; or their names

A tiny distillation of two seeds (CartPole, checkpoints after every update) runs once undisturbed.
`kills`: SIGKILL at so many instants, by turns after so many updates, after so many operations on
files of its directory, and (a quarter) inside a save or a restore that is slowed down for it. Every
run is killed up to CHAIN times, goes on from where it was each time, and then ends. `signals`:
SIGINT and SIGTERM, from the process's first millisecond to its last. `damage`: one file of a run's
directory has a bit flipped, is cut, emptied, deleted or swapped with another, and is read.
`malformed` and `commands`: options, paths, policies and cards that cannot be meant, in this process
and in ones of their own. `nans`: one in one seed's reward, observation or gradient. Writes
results/studies/reliability/<row>.json and reliability.json: how often a run ended how. Where the
result is another one and nothing was said, that is "silent"; there may be none of it, and nothing
"bad". With --minutes it writes what there is by then, and says what is missing; the next call goes
on where it was.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Long, __doc__, __file__)

import contextlib
import functools
import json
import math
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from interruptions import (
    BEGIN,
    CHAIN,
    KINDS,
    Forked,
    chain,
    differs,
    ended_well,
    killed,
    outcome,
    stopped,
    undisturbed,
)


class Sizes(NamedTuple):
    """How often each is tried."""

    kills: int = 200
    signals: int = 50
    damage: int = 10_000
    malformed: int = 4_800
    commands: int = 200
    nans: int = 24


SIZES = {
    "full": Sizes(),
    "cpu": Sizes(10, 6, 300, 200, 20, 6),
    "tiny": Sizes(4, 2, 4, 10, 2, 2),
}
ROWS = Sizes._fields


# --- the study ----------------------------------------------------------------------------------


class Cut(Exception):
    """The time is up."""


class Tally:
    """How a row's trials ended."""

    def __init__(self, kept: dict | None = None, minutes: float | None = None):
        """
        Args:
            kept: the result of a call that was cut, which goes on.
            minutes: from now on.
        """
        self._ends_at = math.inf if minutes is None else time.monotonic() + 60 * minutes
        kept = kept or {"tried": 0, "ends": {}, "seconds": 0.0}
        self.tried, self.ends = kept["tried"], Counter(kept["ends"])
        self._began = time.monotonic() - kept["seconds"]

    def add(self, ends: Counter) -> None:
        """One more trial.

        Raises:
            Cut: it was the last one, because the time is up.
        """
        self.tried += 1
        self.ends += ends
        if time.monotonic() > self._ends_at:
            raise Cut

    def result(self) -> dict:
        """What a row's file holds."""
        seconds = time.monotonic() - self._began
        return {"tried": self.tried, "ends": self.ends, "seconds": seconds}


def kill_many(place: Path, number: int, tally: Tally) -> None:
    """R1: chains of CHAIN kills, each chain with other distances, until there are enough."""
    whole, counts = undisturbed(place / "whole")
    with Forked(place) as forked:
        while sum(tally.ends[kind] for kind in set(KINDS)) < number:
            folder = place / f"killed{tally.tried}"
            stretch = 0.5 + 0.7 * (tally.tried * 0.618 % 1)  # even, whatever their number
            ends = killed(folder, chain(counts, CHAIN, stretch), forked)
            ends["silent" if differs(outcome(folder), whole) else "resumed"] += 1
            print(f"{tally.tried + 1} chains: {dict(tally.ends + ends)}", flush=True)
            shutil.rmtree(folder)
            tally.add(ends)


def stop_many(place: Path, number: int, tally: Tally) -> None:
    """R2: signals at even distances over the seconds that a run takes, its programs being kept."""
    undisturbed(place / "cold")
    began = time.monotonic()
    whole, _ = undisturbed(place / "whole")
    seconds = time.monotonic() - began
    for i in range(tally.tried, number):
        folder = place / f"stopped{i}"
        asked = (signal.SIGINT, signal.SIGTERM)[i % 2]
        code, said = stopped(folder, seconds * (i + 0.5) / number, asked)
        tally.add(Counter([ended_well(folder, code, said, whole)]))
        shutil.rmtree(folder)


def in_process(name: str) -> Callable[[Path, int, Tally], None]:
    """Trials of `hostile`, each with random numbers of its own."""

    def work(place: Path, number: int, tally: Tally) -> None:
        import absl.logging
        import hostile

        absl.logging.get_absl_logger().setLevel("FATAL")  # Orbax tells of damage at length
        made, scratch, trial = hostile.begun(place / "begun"), place / "scratch", hostile.TRIALS
        scratch.mkdir()
        with hostile.nothing_runs(), contextlib.chdir(scratch):
            for i in range(tally.tried, number):
                tally.add(Counter([trial[name](made, random.Random(i), scratch)]))

    return work


def commands(place: Path, number: int, tally: Tally) -> None:
    """R5: malformed command lines, each in a process of its own."""
    import hostile

    made = hostile.begun(place / "begun")
    with Forked(place) as forked:
        for i in range(tally.tried, number):
            argv, folder = hostile.line(made, random.Random(-1 - i)), place / str(i)
            folder.mkdir()
            done = forked(folder, argv)
            if forked.seconds > hostile.LIMIT:  # a machine that is busy may be slow once
                done = forked(folder, argv)
            said = done.stderr.splitlines(keepends=True)
            said = "".join(line for line in said if not line.startswith("device: "))
            end = hostile.answered(argv, done.returncode, said)
            left = {path.name for path in folder.iterdir()} - {"said", "began", "counts.json"}
            if left or forked.seconds > hostile.LIMIT:
                end = f"bad: {argv[:3]} took {forked.seconds:.1f} s and left {left}"
            tally.add(Counter([end]))


def with_nans(place: Path, number: int, tally: Tally) -> None:
    """R10: so many points."""
    import nans

    @functools.cache
    def whole(method: str):
        return nans.trained(place / method, method, None)[0]

    for i, point in [*enumerate(nans.points(number))][tally.tried :]:
        tally.add(Counter([nans.trial(place / str(i), point, whole)]))


WORK: dict[str, Callable[[Path, int, Tally], None]] = {
    "kills": kill_many,
    "signals": stop_many,
    "damage": in_process("damage"),
    "malformed": in_process("malformed"),
    "commands": commands,
    "nans": with_nans,
}


def tried(row: str, number: int, tally: Tally | None = None) -> Tally:
    """So many trials of a row, or as many as there is time for."""
    tally = tally or Tally()
    with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(Cut):
        WORK[row](Path(scratch), number, tally)
    print(f"{row}: {dict(tally.ends)}", flush=True)
    return tally


def count(row: str, ends: dict[str, int]) -> int:
    """Of trials: kills by their kind, everything else by its end."""
    return sum(number for end, number in ends.items() if row != "kills" or end in KINDS)


def gate(results: dict[str, dict], size: Sizes = SIZES["full"]) -> list[str]:
    """What may not be: results that are others in silence, tracebacks, fewer trials than wanted."""
    bad = [
        f"{row}: {number} of them {end}"
        for row, result in results.items()
        for end, number in result["ends"].items()
        if number and end.startswith(("silent", "bad"))
    ]
    done = {row: count(row, result["ends"]) for row, result in results.items()}
    few = [
        f"{row}: {number} of {getattr(size, row)} trials"
        for row, number in done.items()
        if number < getattr(size, row)
    ]
    return bad + few


def main(given: frame.Long) -> int:
    from benchmarks import protocol

    size = frame.sized(given, SIZES)
    settings = protocol.digest({"size": size._asdict(), "chain": CHAIN, "begin": BEGIN})

    def experiment(row: str) -> dict:
        number, file = getattr(size, row), Path(frame.place().folder) / f"reliability/{row}.json"
        kept = json.loads(file.read_text()) if file.exists() and not given.fresh else None
        if kept and (
            kept["settings"]["digest"] != settings["digest"] or count(row, kept["ends"]) >= number
        ):
            kept = None
        return tried(row, number, Tally(kept, given.minutes)).result()

    results = protocol.by_game("reliability", given.names, ROWS, experiment, settings)
    if not results:
        return 0
    failed = gate(results, size)
    protocol.write("reliability", {"failed": failed, "settings": settings})
    return protocol.verdict(failed)


if __name__ == "__main__":
    sys.exit(main(GIVEN))
