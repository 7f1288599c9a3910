"""`jaxkd runs` and `jaxkd compare`: tables of runs as their directories tell. Imports no jax."""

import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxkd.cli import card
from jaxkd.cli.settings import Compare, Runs

_POLICIES = ("teacher", "student", "control")
_UNTOLD = ("out", "quiet", "traceback", "no_cache", "checkpoint_every", "dry_run")
_USAGE, _ARTIFACT = 2, 4  # exit codes, as in `failure`, which imports jax


def answer(command: Runs | Compare) -> int:
    """Runs the command; returns its exit code."""
    if isinstance(command, Runs):
        return runs(command)
    try:
        return compare(command)
    except card.Damaged as error:
        print(f"error: {error}", file=sys.stderr)
        return _ARTIFACT


def runs(settings: Runs) -> int:
    """Prints the table of all runs below a directory."""
    found = sorted(path.parent for path in settings.directory.glob(f"**/{card.CARD}"))
    if not found:
        print(f"no runs below {settings.directory}/. `jaxkd distill ENV` begins one.")
        return 0
    table = Table("run", "command", "environment", "seeds", "status", "begun", "return IQM")
    for run in found:
        table.add_row(str(run), *_cells(run))
    _show(table)
    return 0


def compare(settings: Compare) -> int:
    """Prints what was set otherwise, and the results, a column a run.

    Raises:
        card.Damaged: one of them is no run, or has not finished.
    """
    if len(settings.runs) < 2:
        print("error: compare takes two runs or more. `jaxkd runs` lists them.", file=sys.stderr)
        return _USAGE
    cards = [card.read(run) for run in settings.runs]
    summaries = [card.json_of(run / "summary.json") for run in settings.runs]
    for run, summary in zip(settings.runs, summaries, strict=True):
        if "teacher" not in summary:
            raise card.Damaged(f"{run} has no whole summary.json. `jaxkd resume {run}` ends it.")
    table = Table("", *[str(run) for run in settings.runs])
    for name, values in _differences(cards):
        table.add_row(name, *values)
    table.add_section()
    for name in _POLICIES:
        if any(name in summary for summary in summaries):
            table.add_row(f"{name}: return IQM", *[_return(each, name) for each in summaries])
    table.add_row("student keeps", *[_share(each) for each in summaries])
    table.add_row("wall", *[f"{each['wall_seconds']:.0f} s" for each in summaries])
    _show(table)
    return 0


def _show(table: Table) -> None:
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


def _differences(cards: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Settings and presets that are not the same in all runs, with each one's value."""
    flat = [
        {"command": each["command"], **each["settings"], **each["preset"], **each["versions"]}
        for each in cards
    ]
    names = [name for name in dict.fromkeys(key for each in flat for key in each)]
    rows = [(name, [str(each.get(name, "-")) for each in flat]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1 and name not in _UNTOLD]


def _return(summary: dict[str, Any], name: str) -> str:
    row = summary.get(name)
    if not isinstance(row, dict) or row["iqm"] is None:
        return "-"
    low, high = row["interval"]
    size = f"{row['network']}, {row['actor_parameters']:,} parameters"
    return f"{row['iqm']:.2f} [{low:.2f}, {high:.2f}]\n{size}"


def _share(summary: dict[str, Any]) -> str:
    kept = summary.get("student", {}).get("kept")
    return "-" if kept is None else f"{100 * kept:.1f} %"
