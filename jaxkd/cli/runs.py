"""`jaxkd runs`: the table of runs as their directories tell. Imports no jax."""

import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxkd.cli import card
from jaxkd.cli.settings import Runs

_POLICIES = ("teacher", "student", "control")


def runs(settings: Runs) -> int:
    """Prints the table of all runs below a directory."""
    found = sorted(path.parent for path in settings.directory.glob(f"**/{card.CARD}"))
    if not found:
        print(f"no runs below {settings.directory}/. `jaxkd distill ENV` begins one.")
        return 0
    table = Table("run", "command", "environment", "seeds", "status", "begun", "return IQM")
    for run in found:
        table.add_row(str(run), *_cells(run))
    show(table)
    return 0


def show(table: Table) -> None:
    """Prints a table; wide where the output is no terminal."""
    console = Console(file=sys.stdout)
    (console if console.is_terminal else Console(file=sys.stdout, width=160)).print(table)


# --- one run ------------------------------------------------------------------------------------


def _cells(run: Path) -> list[str]:
    try:
        found = card.read(run)
        summary = card.summary(run, found)
    except card.Damaged as error:
        return ["-", "-", "-", f"cannot be read: {error}", "-", "-"]
    seeds = str(found["settings"]["seeds"])
    begun = datetime.fromtimestamp(found["started"]).strftime("%Y-%m-%d %H:%M")
    status = _status(run, found)
    rows = [summary[name]["iqm"] for name in _POLICIES if isinstance(summary.get(name), dict)]
    returns = ", ".join("-" if value is None else f"{value:.4g}" for value in rows) or "-"
    return [found["command"], found["env"], seeds, status, begun, returns]


def _status(run: Path, found: dict[str, Any]) -> str:
    status = found["status"]
    if status == "running" and not card.busy(run):
        status = "killed"
    go_on = status in ("killed", "interrupted")
    return f"{status}; jaxkd resume {run}" if go_on else status
