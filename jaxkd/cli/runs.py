"""`jaxkd runs`: a table of the runs below a directory. Imports no jax."""

import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from jaxkd.cli import card
from jaxkd.cli.settings import Runs


def runs(settings: Runs) -> int:
    """Prints the table."""
    found = sorted(path.parent for path in settings.directory.glob(f"**/{card.CARD}"))
    if not found:
        print(f"no runs below {settings.directory}/. `jaxkd distill ENV` begins one.")
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("run", "command", "environment", "seeds", "status", "begun", "return IQM")
    for run in found:
        table.add_row(str(run), *_cells(run))
    console = Console(file=sys.stdout)
    (console if console.is_terminal else Console(file=sys.stdout, width=160)).print(table)
    return 0


def _cells(run: Path) -> list[str]:
    try:
        found = card.read(run)
        seeds = str(found["settings"]["seeds"])
        begun = datetime.fromtimestamp(found["started"]).strftime("%Y-%m-%d %H:%M")
        status = _status(run, found)
        return [found["command"], found["env"], seeds, status, begun, _returns(run)]
    except card.Damaged as error:
        return ["-", "-", "-", f"cannot be read: {error}", "-", "-"]


def _status(run: Path, found: dict[str, Any]) -> str:
    status = found["status"]
    if status == "running" and not card.busy(run):
        status = "killed"
    go_on = status in ("killed", "interrupted")
    return f"{status}; jaxkd resume {run}" if go_on else status


def _returns(run: Path) -> str:
    """Of teacher, student and control, as far as there are any."""
    summary = card.json_of(run / "summary.json")
    names = ("teacher", "student", "control")
    rows = [summary[name]["iqm"] for name in names if isinstance(summary.get(name), dict)]
    return ", ".join("-" if value is None else f"{value:.4g}" for value in rows) or "-"
