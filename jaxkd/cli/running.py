"""`jaxkd distill`, `jaxkd teach` and `jaxkd resume`: a run in its directory, from card to table.

What a run does is a list of phases (`plan`); this module runs it and keeps its card.
"""

import hashlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import absl.logging
import jax

from jaxkd import check, report
from jaxkd.base import UsageError
from jaxkd.cache import compile_cache
from jaxkd.cli import card, directory, reporting, watching
from jaxkd.cli import device as devices
from jaxkd.cli.card import FORMAT
from jaxkd.cli.dry import dry_run
from jaxkd.cli.failure import Diverged, Interrupted
from jaxkd.cli.log import METRICS, Log
from jaxkd.cli.pace import fitted
from jaxkd.cli.phases import Job, perform
from jaxkd.cli.plan import Plan, plan
from jaxkd.cli.progress import Progress
from jaxkd.cli.settings import Distill, Resume, Teach
from jaxkd.cli.signals import INTERRUPTED, Stop
from jaxkd.cli.summary import FORMAT as SUMMARY_FORMAT
from jaxkd.cli.summary import versions
from jaxkd.presets import Preset
from jaxkd.report import several
from jaxkd.run import seeds
from jaxkd.tracking import check_kinds, tracker

PICTURE = "pareto.png"
_COMMANDS = {"distill": Distill, "teach": Teach}
# What a result does not depend on; a teacher is known by what it is, not by where it was.
_APART = (
    "out",
    "device",
    "dry_run",
    "devices",
    "budget",  # it has become steps
    "checkpoint_every",
    "no_cache",
    "no_report",
    "track",
    "quiet",
    "traceback",
    "teacher",
)
_LASTING = (  # of a card, what a resumed run keeps
    *("format", "command", "env", "device", "versions", "settings", "preset", "argv", "started"),
    "resumed",
)


def begin(settings: Distill | Teach, argv: list[str], stop: Stop) -> int:
    """A new run; returns its exit code.

    Raises:
        UsageError, DeviceError, ArtifactError: before anything is written.
        Diverged: when no seed is left.
    """
    if any(word in ("", "--out=", "--teacher=") for word in argv):
        raise UsageError("an option has an empty value, such as --out ''. Leave it out instead.")
    device, planned = _prepare(settings)
    if settings.budget is not None:
        settings = fitted(settings, planned)
        planned = plan(settings, jax.devices()[0])
    if settings.dry_run:
        return dry_run(settings, planned)
    asked = dict(
        format=FORMAT,
        command=argv[0],
        env=settings.env,
        device=device,
        versions=versions(),
        settings=vars(settings),
        preset=planned.preset._asdict(),
        argv=argv,
        started=time.time(),
    )
    stop.keeps = True
    with directory.make(settings.env, settings.out) as run:
        print(f"run directory: {run.path}/", flush=True)
        return _go(run, settings, planned, asked, stop)


def resume(wanted: Resume, stop: Stop) -> int:
    """Goes on with a run; returns its exit code.

    Raises:
        UsageError: it is another version's, or a process is at work on it.
        Damaged, ArtifactError: it cannot be read.
        Diverged: it had no seed left.
    """
    before = card.read(wanted.run)
    if before["status"] == "finished":
        print(f"{wanted.run} has finished already: see {wanted.run / 'summary.json'}.")
        return 0
    if before["status"] == "diverged":
        raise Diverged(f"{wanted.run} has diverged, and would again. Begin with other settings.")
    with directory.Directory(wanted.run).lock() as run:
        settings = _asked(before, wanted)
        device, planned = _prepare(settings)
        _check_same(before, settings, planned)
        _warn_of_other("devices", before["settings"].get("devices", 1), settings.devices)
        _warn_of_other("device", before["device"].split(",")[0], device.split(",")[0])
        _warn_of_other("versions", before["versions"], directory.plain(versions()))
        stop.keeps = True
        print(f"run directory: {run.path}/, resumed", flush=True)
        asked = {name: value for name, value in before.items() if name in _LASTING}
        resumed = [*before.get("resumed", []), time.time()]
        return _go(run, settings, planned, asked | dict(resumed=resumed), stop)


def _asked(before: dict[str, Any], wanted: Resume) -> Distill | Teach:
    """The settings of a run's card; the teacher's copy in its directory is what it learns from."""
    given: dict[str, Any] = dict(before["settings"])
    try:
        given |= {name: tuple(given.get(name, ())) for name in ("set", "grid")}
        copy = wanted.run / "teachers" / "00.npz"
        if given.get("teacher"):
            given["teacher"] = copy if copy.exists() else Path(given["teacher"])
        given |= dict(quiet=wanted.quiet, traceback=wanted.traceback)
        other = dict(device=wanted.device, devices=wanted.devices)
        given |= {name: value for name, value in other.items() if value is not None}
        return _COMMANDS[before["command"]](**given)
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{wanted.run} is a run of another version of jaxkd ({error}). Resume it with that "
            "one, or begin anew."
        ) from error


def _check_same(before: dict[str, Any], settings: Distill | Teach, planned: Plan) -> None:
    """Raises a UsageError where the same settings mean something else now.

    A field that the run's version did not know means what its default does.
    """
    then, now = before.get("preset"), directory.plain(planned.preset._asdict())
    if isinstance(then, dict):
        then = directory.plain(Preset._field_defaults) | then
    if then != now:
        raise UsageError(
            f"the preset of {settings.env} is another one than this run was begun with: "
            f"{_apart(then, now)}. Resume it with jaxkd "
            f"{before['versions'].get('jaxkd-rl')}, or begin anew."
        )


def _warn_of_other(what: str, then: Any, now: Any) -> None:
    if then != now:
        print(
            f"warning: other {what} than the run was begun with: {_apart(then, now)}. "
            "It goes on, but not to the last bit.",
            file=sys.stderr,
        )


def _apart(then: Any, now: Any) -> str:
    """What differs, both sides."""
    if not isinstance(then, dict):
        return f"then {then}, now {now}"
    names = [name for name in then | now if then.get(name) != now.get(name)]
    return ", ".join(f"{name} then {then.get(name)}, now {now.get(name)}" for name in names)


def _prepare(settings: Distill | Teach) -> tuple[str, Plan]:
    """The device in words, and the plan."""
    check_kinds(settings.track)
    check.count("--devices", settings.devices)
    device = devices.choose(settings.device, settings.devices)
    print(f"device: {devices.describe(device)}", flush=True)
    if not settings.no_cache:
        keep_programs()
    return devices.describe(device), plan(settings, device)


def keep_programs() -> None:
    """The compile cache; a command works without it, too."""
    try:
        compile_cache()
    except UsageError as error:
        print(f"warning: {error} Nothing is kept for the next start.", file=sys.stderr)


def _go(
    run: directory.Directory,
    settings: Distill | Teach,
    planned: Plan,
    asked: dict[str, Any],
    stop: Stop,
) -> int:
    """Runs the phases, and keeps run.json true."""
    console = report.console()
    # Orbax prints a dozen tracebacks for what is one line of ours, such as a full disk.
    absl.logging.get_absl_logger().setLevel(logging.CRITICAL)
    run.write_card(asked | dict(status="running"))

    def finish(status: str, **more: Any) -> None:
        ended = dict(status=status, finished=time.time(), digests=run.digests())
        run.write_card(asked | ended | more)

    progress = Progress(console, settings.quiet)
    try:
        summary = _summary(run, settings, planned, asked, stop, progress)
        run.write("summary.json", summary)
        if planned.num_sizes > 1:
            several.picture(directory.plain(summary), run.path / PICTURE)
        finish("finished")
    except Interrupted as interrupted:
        finish("interrupted")
        print(f"{interrupted} Go on with: jaxkd resume {run.path}", file=sys.stderr, flush=True)
        return INTERRUPTED
    except Diverged as error:
        finish("diverged", error=str(error))
        raise
    finally:
        progress.close()
    report.headline(directory.plain(summary), console)
    several.show(directory.plain(summary), console)
    if not settings.no_report:
        reporting.append(run.path)
    return 0


def _summary(
    run: directory.Directory,
    settings: Distill | Teach,
    planned: Plan,
    asked: dict[str, Any],
    stop: Stop,
    progress: Progress,
) -> dict[str, Any]:
    """What the phases make, with the seconds of all processes that worked on it."""
    began, digest = time.time(), _digest(asked)
    with watching.compilation() as compile_seconds:
        keys, log = seeds(settings.seed, settings.seeds), Log(run.path / METRICS)
        every = settings.checkpoint_every
        track = tracker(settings.track, run.path, **directory.plain(vars(settings)))
        job = Job(run, progress, keys, compile_seconds, stop, log, digest, every, track.write)
        try:
            left = perform(planned.phases, job)
        finally:
            track.close()
        compiling = compile_seconds()
    earlier = [result.trained.earlier for result in left["results"].values()]
    running = time.time() - began - compiling + sum(seconds[0] for seconds in earlier)
    compiling += sum(seconds[1] for seconds in earlier)
    facts = {name: asked[name] for name in ("env", "device", "versions")}
    took = dict(wall_seconds=round(running, 3), compile_seconds=round(compiling, 3))
    return dict(format=SUMMARY_FORMAT) | facts | left["summary"] | took


def _digest(asked: dict[str, Any]) -> str:
    """SHA-256 of what the result depends on, in the words of the version that began the run."""
    kept = {name: value for name, value in asked["settings"].items() if name not in _APART}
    said = dict(command=asked["command"], settings=kept, preset=asked["preset"])
    text = json.dumps(directory.plain(said), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
