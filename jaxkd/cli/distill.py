"""`jaxkd distill`: teachers, students, the same network without a teacher, and their table.

What it does is a list of phases (`plan`); this module runs it and writes what it was and became.
"""

import sys
import time
from typing import Any

from jaxkd import report
from jaxkd.base import UsageError
from jaxkd.cli import device as devices
from jaxkd.cli import directory, watching
from jaxkd.cli.failure import INTERRUPTED, Diverged, Interrupted
from jaxkd.cli.phases import Job, perform
from jaxkd.cli.plan import plan
from jaxkd.cli.progress import Progress
from jaxkd.cli.settings import Distill
from jaxkd.cli.summary import FORMAT, versions
from jaxkd.run import seeds


def distill(settings: Distill, argv: list[str]) -> int:
    """Runs the command; returns its exit code.

    Raises:
        UsageError, DeviceError, ArtifactError: before anything is written.
        Diverged: when no seed is left.
    """
    started = time.time()
    if any(word in ("", "--out=", "--teacher=") for word in argv):
        raise UsageError("an option has an empty value, such as --out ''. Leave it out instead.")
    device = devices.choose(settings.device)
    print(f"device: {devices.describe(device)}", flush=True)
    planned = plan(settings, device)
    run = directory.make(settings.env, settings.out)
    print(f"run directory: {run.path}/", flush=True)
    console = report.console()
    facts: dict[str, Any] = dict(
        format=FORMAT, env=settings.env, device=devices.describe(device), versions=versions()
    )

    def finish(status: str) -> None:
        """Writes run.json, always the last file: what was asked for, how it ended, digests."""
        asked = dict(settings=vars(settings), preset=planned.preset._asdict(), argv=argv)
        ended = dict(status=status, finished=time.time(), digests=run.digests())
        run.write("run.json", facts | asked | dict(started=started) | ended)

    with watching.compilation() as compile_seconds, watching.signals() as stop:
        progress = Progress(console, settings.quiet)
        keys = seeds(settings.seed, settings.seeds)
        try:
            job = Job(run, progress, keys, compile_seconds, stop)
            summary = facts | perform(planned.phases, job)["summary"]
        except Interrupted as interrupted:
            finish("interrupted")
            print(f"{interrupted} Kept in {run.path}/: {_kept(run)}.", file=sys.stderr)
            return INTERRUPTED
        except Diverged:
            finish("diverged")
            raise
        finally:
            progress.close()
        compiling = compile_seconds()
    working = time.time() - started - compiling
    summary |= dict(wall_seconds=round(working, 3), compile_seconds=round(compiling, 3))
    run.write("summary.json", summary)
    finish("finished")
    report.headline(directory.plain(summary), console)
    return 0


def _kept(run: directory.Directory) -> str:
    """What an interrupted run leaves, in words."""
    counted = {
        name: len(list((run.path / name).glob("*.npz"))) for name in ("teachers", "students")
    }
    policies = [f"{number} {name}" for name, number in counted.items() if number]
    return ", ".join([*policies, "metrics.jsonl"])
