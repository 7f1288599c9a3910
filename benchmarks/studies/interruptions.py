"""Runs that are killed, stopped or out of room, in processes of their own, and what they leave."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


PROGRAM = "import sys; from interruptions import child; sys.exit(child())"


class Forked:
    """`run` by processes that are forked from one that has imported everything: half the time."""

    def __init__(self, place: Path):
        """
        Args:
            place: whose folders it runs in.
        """
        self.seconds = 0.0  # of the processor, that the last one took after its imports
        self._server = subprocess.Popen(
            [sys.executable, "-c", "from interruptions import serve; serve()"],
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

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *error: Any) -> None:
        self._server.communicate()


def serve() -> None:
    """Forks a child for every line of standard input, and says its exit code."""
    # What gymnax imports; it itself starts a backend, which does not survive a fork: the children
    # import it, and their clock starts then.
    import gymnasium  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import orbax.checkpoint  # noqa: F401

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
            import gymnax  # noqa: F401

            Path("began").write_text(str(time.process_time()))
            sys.argv = ["child", *given]
            os._exit(child())
        _, status, used = os.wait4(process, 0)
        seconds = used.ru_utime + used.ru_stime - float((Path(folder) / "began").read_text())
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
