"""`jaxkd report`, and the report at the end of a run."""

import sys
from pathlib import Path

from jaxkd.cli import card
from jaxkd.cli import device as devices
from jaxkd.cli.settings import Report


def report(settings: Report) -> int:
    """Writes the report of a run; returns the exit code.

    Raises:
        Damaged: there is no run, or its card cannot be believed.
        DeviceError: the device is not there.
    """
    found = card.read(settings.run)
    print(f"device: {devices.describe(devices.choose(settings.device))}", flush=True)
    _write(settings.run, found)
    return 0


def append(run: Path) -> None:
    """The report of a run that has just ended, which nothing that goes wrong here takes away."""
    try:
        _write(run, card.read(run))
    except Exception as error:
        line = " ".join(str(error).split()) or type(error).__name__
        print(f"warning: no report: {line}. `jaxkd report {run}` tries again.", file=sys.stderr)


def _write(run: Path, found: dict) -> None:
    from jaxkd.report import page  # matplotlib and Pillow take a moment

    files = page.write(run, found)
    print(f"report: {files[0]}", flush=True)
