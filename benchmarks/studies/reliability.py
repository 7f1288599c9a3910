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
"bad".
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Named, __doc__, __file__)

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
CHAIN = 8  # kills of one run
KINDS = ("update", "file", "save", "file", "update", "file", "restore", "file")  # of a chain's
SLOW = 0.02  # seconds, of every operation on files inside a save or restore that is killed
RUN = "the-run"
_TINY = "num_envs=8 unroll_length=8 num_epochs=1 num_minibatches=2 hidden=8 student_epochs=1"
BEGIN = [
    *"distill CartPole-v1 --seeds 2 --steps 640 --student-steps 512 --student mlp:4".split(),
    *"--episodes 8 --checkpoint-every 0.001 --device cpu --quiet --no-report --out".split(),
    RUN,
    *[word for pair in _TINY.split() for word in ("--set", pair)],
]
RESUME = ["resume", RUN, "--quiet"]
TIMES = ("wall_seconds", "compile_seconds", "latency_us")  # of summary.json
_FILE_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")


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


# --- the process that is killed -----------------------------------------------------------------


def child() -> int:
    """The command in sys.argv[4:], which kills itself when it has done `number` things of `kind`.

    Kinds are of KINDS; counts of all go to the file `counts`. A save or a restore of that number is
    slowed down from its beginning, and the process killed somewhere in it.
    """
    counts, kind, number, *argv = sys.argv[1:]
    done, slowed = Counter(), threading.Event()

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def count(what: str) -> None:
        done[what] += 1
        if what == kind and done[what] == int(number):
            if what in ("update", "file"):
                kill()
            slowed.set()
            threading.Timer(SLOW * (1 + 7 * int(number) % 25), kill).start()

    def seen(event: str, arguments: tuple) -> None:
        if event in _FILE_EVENTS and RUN in str(arguments[0]):
            count("file")
            if slowed.is_set():
                time.sleep(SLOW)

    sys.addaudithook(seen)
    from jaxkd import checkpoint
    from jaxkd.cli import main, training

    training._CHUNK_SECONDS = 0.0  # a look, and so a checkpoint, after every update
    for owner, name, what in (
        (training._Watch, "looks", "update"),
        (checkpoint.Checkpoints, "save", "save"),
        (checkpoint.Checkpoints, "restore", "restore"),
    ):
        setattr(owner, name, counted(getattr(owner, name), lambda what=what: count(what)))
    code = main(argv)
    Path(counts).write_text(json.dumps(done))
    return code


def counted(method: Callable, count: Callable[[], None]) -> Callable:
    """The method, counted before each call."""

    def call(*arguments, **keywords):
        count()
        return method(*arguments, **keywords)

    return call


def run(
    folder: Path, argv: list[str], kind: str = "", number: int = 0
) -> subprocess.CompletedProcess:
    """The command in `folder`, in a process that may kill itself."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder / "counts.json"), kind, str(number), *argv],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=300,
    )


PROGRAM = "import sys; from reliability import child; sys.exit(child())"


class Forked:
    """`run` by processes that are forked from one that has imported everything: half the time."""

    def __init__(self, place: Path):
        """
        Args:
            place: whose folders it runs in.
        """
        self.seconds = 0.0  # of the processor, that the last one took
        self._server = subprocess.Popen(
            [sys.executable, "-c", "from reliability import serve; serve()"],
            env=environment(place / "folder"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, folder: Path, argv: list[str], kind: str = "", number: int = 0) -> Any:
        server: Any = self._server
        asked = [str(folder), str(folder / "counts.json"), kind, str(number), *argv]
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        code, self.seconds = json.loads(server.stdout.readline())
        said = (folder / "said").read_text()
        return subprocess.CompletedProcess(argv, code, said, said)

    def close(self) -> None:
        self._server.communicate()


def serve() -> None:
    """Forks a child for every line of standard input, and says its exit code."""
    from jaxkd import checkpoint  # noqa: F401
    from jaxkd.cli import plan, running  # noqa: F401

    for line in sys.stdin:
        folder, *given = json.loads(line)
        process = os.fork()
        if not process:
            os.chdir(folder)
            said = os.open("said", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(said, 1)
            os.dup2(said, 2)
            sys.argv = ["child", *given]
            os._exit(child())
        _, status, used = os.wait4(process, 0)
        seconds = used.ru_utime + used.ru_stime
        print(json.dumps([os.waitstatus_to_exitcode(status), seconds]), flush=True)


def environment(folder: Path) -> dict[str, str]:
    """Of a child: programs compiled once are shared by all."""
    path = [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    cache = os.environ.get("RELIABILITY_CACHE") or str(folder.parent / "cache")
    more = {"PYTHONPATH": os.pathsep.join(path), "XDG_CACHE_HOME": cache, "JAX_PLATFORMS": "cpu"}
    return os.environ | more


# --- what it leaves -----------------------------------------------------------------------------


def outcome(folder: Path) -> dict[str, object]:
    """All of a finished run that may not depend on how often it was stopped, by name."""
    place = folder / RUN
    found: dict[str, object] = {"metrics": (place / "metrics.jsonl").read_bytes()}
    found |= {
        f"{path.parent.name}/{path.name}": path.read_bytes() for path in place.glob("*s/*.npz")
    }
    for phase in ("teacher", "student", "control"):
        newest = max((place / "checkpoints" / phase).iterdir(), key=lambda path: int(path.name))
        card = json.loads((newest / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]
        found[phase] = [leaf for leaf in card["leaves"] if leaf[0] != ".seconds"]
    found["summary"] = without_times(json.loads((place / "summary.json").read_text()))
    return found


def without_times(value: object) -> object:
    if isinstance(value, dict):
        return {name: without_times(part) for name, part in value.items() if name not in TIMES}
    return value


def differs(ours: dict, theirs: dict) -> list[str]:
    """Names of what is not the same to the last bit."""
    return [name for name in ours | theirs if ours.get(name) != theirs.get(name)]


# --- rows ---------------------------------------------------------------------------------------


def undisturbed(folder: Path) -> tuple[dict[str, object], dict[str, int]]:
    """What the run is without us, and how many updates it makes and file operations."""
    folder.mkdir(parents=True)
    done = run(folder, BEGIN)
    assert done.returncode == 0, done.stderr
    return outcome(folder), json.loads((folder / "counts.json").read_text())


def chain(counts: dict[str, int], kills: int, stretch: float = 1.0) -> list[tuple[str, int]]:
    """(kind, count) of kills, each so far from the one before that the last is near the end."""
    wanted = [KINDS[i % len(KINDS)] for i in range(kills)]
    return [(kind, max(1, round(stretch * counts.get(kind, 0) / (kills + 1)))) for kind in wanted]


def killed(folder: Path, kills: list[tuple[str, int]], run: Callable = run) -> Counter:
    """How often one run was killed, by kind: each time it goes on from where it was, then ends."""
    folder.mkdir(parents=True)
    ends, argv = Counter(), BEGIN
    for kind, number in [*kills, ("", 0)]:
        done = run(folder, argv, kind, number)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        ends[kind] += done.returncode == -signal.SIGKILL
        if done.returncode == 0:
            break
        if (folder / RUN / "run.json").exists():
            argv = RESUME
        else:  # killed before there was anything to resume
            shutil.rmtree(folder / RUN, ignore_errors=True)
    return ends


def stopped(folder: Path, delay: float, number: int) -> tuple[int, str]:
    """(exit code, standard error) of a run that gets a signal after `delay` seconds."""
    folder.mkdir(parents=True)
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *BEGIN],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(delay)
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    return process.returncode, said


COMMAND = "import sys; from jaxkd.cli import main; sys.exit(main())"


def ended_well(folder: Path, code: int, said: str, whole: dict) -> str:
    """How a run that got a signal ended; "silent" where the result is another, "bad" otherwise."""
    resumable = (folder / RUN / "run.json").exists()
    if code == 75 and not resumable:
        return "before it began" if "Nothing is lost" in said else f"bad: {said}"
    if code == 75 and f"jaxkd resume {RUN}" in said.splitlines()[-1]:
        done = run(folder, RESUME)
        if done.returncode:
            return f"bad: {done.stderr}"
        return "silent" if differs(outcome(folder), whole) else "saved and resumed"
    if code == 0:
        return "silent" if differs(outcome(folder), whole) else "finished before"
    return f"bad: {code}, {said}"


def full(folder: Path, room: int) -> subprocess.CompletedProcess:
    """A run on a disk where no file may be larger than `room` bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    program = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
{COMMAND}"""
    return subprocess.run(
        [sys.executable, "-c", program, *BEGIN],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=300,
    )


# --- the study ----------------------------------------------------------------------------------


class Tally:
    """How a row's trials ended; in a file, so that a call that was cut goes on."""

    def __init__(self, file: Path | None = None):
        self.file, self.tried, self.seconds = file, 0, 0.0
        self.ends: Counter = Counter()
        if file is not None and file.exists():
            kept = json.loads(file.read_text())
            self.tried, self.seconds = kept["tried"], kept["seconds"]
            self.ends = Counter(kept["ends"])
        self._began = time.monotonic() - self.seconds

    def add(self, ends: Counter) -> None:
        """One more trial."""
        self.tried, self.seconds = self.tried + 1, time.monotonic() - self._began
        self.ends += ends
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            kept = {"tried": self.tried, "ends": self.ends, "seconds": self.seconds}
            part = self.file.with_suffix(".part")
            part.write_text(json.dumps(kept))
            part.replace(self.file)


def kill_many(place: Path, number: int, tally: Tally) -> None:
    """R1: chains of CHAIN kills, each chain with other distances, until there are enough."""
    whole, counts = undisturbed(place / "whole")
    forked = Forked(place)
    while sum(tally.ends[kind] for kind in set(KINDS)) < number:
        folder = place / f"killed{tally.tried}"
        stretch = 0.5 + 0.7 * (tally.tried * 0.618 % 1)  # even, whatever their number
        ends = killed(folder, chain(counts, CHAIN, stretch), forked)
        ends["silent" if differs(outcome(folder), whole) else "resumed"] += 1
        tally.add(ends)
        print(f"{tally.tried} chains: {dict(tally.ends)}", flush=True)
        shutil.rmtree(folder)
    forked.close()


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

    made, forked = hostile.begun(place / "begun"), Forked(place)
    for i in range(tally.tried, number):
        argv, folder = hostile.line(made, random.Random(-1 - i)), place / str(i)
        folder.mkdir()
        done = forked(folder, argv)
        said = [line for line in done.stderr.splitlines(True) if not line.startswith("device: ")]
        end = hostile.answered(argv, done.returncode, "".join(said))
        left = {path.name for path in folder.iterdir()} - {"said", "counts.json"}
        if left or forked.seconds > hostile.LIMIT:
            end = f"bad: {argv[:3]} took {forked.seconds:.1f} s and left {left}"
        tally.add(Counter([end]))
    forked.close()


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


def tried(row: str, number: int, file: Path | None = None) -> Tally:
    """So many trials of a row."""
    tally = Tally(file)
    with tempfile.TemporaryDirectory() as scratch:
        WORK[row](Path(scratch), number, tally)
    print(f"{row}: {dict(tally.ends)}", flush=True)
    return tally


def gate(results: dict[str, dict]) -> list[str]:
    """What may not be: results that are others in silence, tracebacks, wrong exit codes."""
    return [
        f"{row}: {number} of them {end}"
        for row, result in results.items()
        for end, number in result["ends"].items()
        if number and end.startswith(("silent", "bad"))
    ]


def main(given: frame.Named) -> int:
    from benchmarks import protocol

    size = frame.sized(given, SIZES)
    settings = protocol.digest({"size": size._asdict(), "chain": CHAIN, "begin": BEGIN})

    def experiment(row: str) -> dict:
        file = Path(frame.place().kept) / "reliability" / f"{row}.json"
        if given.fresh:
            file.unlink(missing_ok=True)
        tally = tried(row, getattr(size, row), file)
        file.unlink(missing_ok=True)
        return {"ends": tally.ends, "seconds": tally.seconds}

    results = protocol.by_game("reliability", given.names, ROWS, experiment, settings)
    if not results:
        return 0
    failed = gate(results)
    protocol.write("reliability", {"failed": failed, "settings": settings})
    return protocol.verdict(failed)


if __name__ == "__main__":
    sys.exit(main(GIVEN))
