"""Does a run survive whatever stops it, and is the result the same to the last bit?

    python benchmarks/studies/reliability.py                   # all rows; or: kills signals damage

A tiny distillation of two seeds (CartPole, checkpoints after every update) runs once undisturbed.
`kills`: SIGKILL at KILLS instants, spread evenly over its updates and over all that it does to
files of its directory, which are the instants inside saves and restores; killed runs are resumed,
and killed again, up to CHAIN times before they may end. `signals`: SIGINT and SIGTERM at SIGNALS
instants from the process's first millisecond on. `damage`: a file of a killed run's directory has a
bit flipped, is cut, emptied, deleted or swapped with another, DAMAGED times.
Writes results/studies/reliability.json: how often each ended how; a result that is another is
"silent", and there may be none.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Named, __doc__, __file__)

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KILLS, CHAIN, SIGNALS, DAMAGED = 200, 5, 50, 300
RUN = "the-run"
_TINY = "num_envs=8 unroll_length=8 num_epochs=1 num_minibatches=2 hidden=8 student_epochs=1"
BEGIN = [
    *"distill CartPole-v1 --seeds 2 --steps 640 --student-steps 512 --student mlp:4".split(),
    *"--episodes 8 --checkpoint-every 0.001 --device cpu --quiet --out".split(),
    RUN,
    *[word for pair in _TINY.split() for word in ("--set", pair)],
]
RESUME = ["resume", RUN, "--quiet"]
TIMES = ("wall_seconds", "compile_seconds", "latency_us")  # of summary.json
_FILE_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")


# --- the process that is killed -----------------------------------------------------------------


def child() -> int:
    """The command in sys.argv[4:], which kills itself when it has done `number` things of `kind`.

    Kinds are "update" and "file"; counts of both go to the file `counts`.
    """
    counts, kind, number, *argv = sys.argv[1:]
    done = Counter()

    def count(what: str) -> None:
        done[what] += 1
        if what == kind and done[what] == int(number):
            os.kill(os.getpid(), signal.SIGKILL)

    def seen(event: str, arguments: tuple) -> None:
        if event in _FILE_EVENTS and RUN in str(arguments[0]):
            count("file")

    sys.addaudithook(seen)
    from jaxkd.cli import main, training

    training._CHUNK_SECONDS = 0.0  # a look, and so a checkpoint, after every update
    looks = training._Watch.looks

    def counted(watch, metrics):
        count("update")
        return looks(watch, metrics)

    training._Watch.looks = counted
    code = main(argv)
    Path(counts).write_text(json.dumps(done))
    return code


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


def instants(counts: dict[str, int], number: int) -> list[tuple[str, int]]:
    """(kind, count) of `number` kills: half of them between updates, half at files."""
    found = []
    for kind, share in (("update", number - number // 2), ("file", number // 2)):
        found += [(kind, 1 + (2 * i + 1) * counts[kind] // (2 * share)) for i in range(share)]
    return found


def killed(folder: Path, kills: list[tuple[str, int]]) -> Counter:
    """One run that is killed at each of these instants, if it gets there, and then ends."""
    folder.mkdir(parents=True)
    ends, argv = Counter(), BEGIN
    for kind, number in [*kills, ("", 0)]:
        done = run(folder, argv, kind, number)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        if done.returncode == -signal.SIGKILL:
            ends[kind] += 1
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
