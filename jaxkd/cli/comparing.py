"""`jaxkd compare`: runs side by side, as their directories tell. Imports no jax."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from jaxkd.cli import card
from jaxkd.cli.runs import show
from jaxkd.cli.settings import Compare
from jaxkd.report import comparison, statistics
from jaxkd.report.facts import UNTOLD

_POLICIES = ("teacher", "student", "control")
_USAGE, _ARTIFACT = 2, 4  # exit codes, as in `failure`, which imports jax
_FORMATS = {"markdown": comparison.markdown, "latex": comparison.latex}


class _Run(NamedTuple):
    path: Path
    card: dict[str, Any]
    summary: dict[str, Any]


def answer(settings: Compare) -> int:
    """Runs the command; returns its exit code."""
    if len(settings.runs) < 2:
        print("error: compare takes two runs or more. `jaxkd runs` lists them.", file=sys.stderr)
        return _USAGE
    try:
        compare(settings)
    except (card.Damaged, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return _ARTIFACT
    return 0


def compare(settings: Compare) -> None:
    """Prints what was set otherwise, the results, a column a run, and what their seeds say.

    Raises:
        card.Damaged: one of them is no run, or has not finished.
    """
    found = [_read(path) for path in settings.runs]
    names, rows = [str(run.path) for run in found], _results(found)
    if settings.format == "table":
        table = Table("", *names)
        for name, values in _differences([run.card for run in found]):
            table.add_row(name, *values)
        table.add_section()
        for heading, cells in rows:
            table.add_row(heading, *cells)
        show(table)
    sides = _sides(found)
    if len(sides) < 2:
        return
    _draw(settings.profile, sides)
    names, rows = [each.name for each in sides], comparison.compared(sides)
    if settings.format != "table":
        print(_FORMATS[settings.format](names, rows))
        return
    environments = ", ".join(sides[0].scores)
    table = Table("", *names, title=f"The {_policy(found)}s of {environments}: value [95 %]")
    for heading, cells in rows:
        table.add_row(heading, *cells)
    show(table)


def _draw(path: Path | None, sides: list[comparison.Side]) -> None:
    """The performance profiles, where they are asked for and every side has shares."""
    if path is None:
        return
    shares = {each.name: each.shares for each in sides}
    if any(np.isnan(x).any() for each in shares.values() for x in each.values()):
        print(f"{path} not written: a teacher is not above a random policy.", file=sys.stderr)
        return
    from jaxkd.report import figures  # matplotlib takes a moment

    figures.save(path, figures.profiles, shares)


def _read(path: Path) -> _Run:
    found = card.read(path)
    run = _Run(path, found, card.summary(path, found))
    if "teacher" not in run.summary:
        raise card.Damaged(f"{path} has no whole summary.json. `jaxkd resume {path}` ends it.")
    return run


# --- what the seeds say ---------------------------------------------------------------------------


def _policy(found: list[_Run]) -> str:
    """Whose returns are compared: the students', or the teachers' where a run has no other."""
    return "student" if all("student" in run.summary for run in found) else "teacher"


def _sides(found: list[_Run]) -> list[comparison.Side]:
    """A side a run; of several environments one for all runs that were set alike otherwise."""
    policy = _policy(found)
    if any("returns" not in run.summary[policy] for run in found):
        return []
    groups: dict[str, list[_Run]] = {}
    several = len({run.card["env"] for run in found}) > 1
    for run in found:
        said = {**run.card["settings"], "command": run.card["command"]}
        name = " ".join(str(said.get(each, "")) for each in ("command", "method", "student"))
        groups.setdefault(name if several else str(run.path), []).append(run)
    first, *others = [sorted(run.card["env"] for run in runs) for runs in groups.values()]
    if len(set(first)) < len(first) or any(each != first for each in others):
        print("The seeds are not compared: every side needs one run of each environment.")
        return []
    return [
        comparison.side(
            name, [run.summary for run in runs], [_area(x, policy) for x in runs], policy
        )
        for name, runs in groups.items()
    ]


def _area(run: _Run, policy: str) -> Any:
    """The mean height of each seed's learning curve; nan where it is not known."""
    lines = [line for line in card.lines_of(run.path / "metrics.jsonl") if line["phase"] == policy]
    if not lines:
        return np.nan
    steps = [line["env_steps"] for line in lines]
    return statistics.area(steps, [np.array(line["seeds"]["return"], float) for line in lines])


# --- what their summaries say ---------------------------------------------------------------------


def _results(found: list[_Run]) -> comparison.Rows:
    summaries = [run.summary for run in found]
    rows = [
        (f"{name}: return IQM", [_return(each, name) for each in summaries])
        for name in _POLICIES
        if any(name in summary for summary in summaries)
    ]
    rows.append(("student keeps", [_share(each) for each in summaries]))
    return [*rows, ("wall", [f"{each['wall_seconds']:.0f} s" for each in summaries])]


def _differences(cards: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Settings and presets that are not the same in all runs, with each one's value."""
    flat = [
        {"command": each["command"], **each["settings"], **each["preset"], **each["versions"]}
        for each in cards
    ]
    names = [name for name in dict.fromkeys(key for each in flat for key in each)]
    rows = [(name, [str(each.get(name, "-")) for each in flat]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1 and name not in UNTOLD]


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
