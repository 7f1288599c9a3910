"""Several students of one run: a table, which is enough, which is best, and a picture by size."""

from pathlib import Path
from typing import Any

import rich.table
from rich.console import Console

ENOUGH = 0.95  # of what the teacher has above chance
_INK = {"teacher": "black", "student": "tab:blue", "control": "tab:orange"}
_WORDS = {"teacher": "teacher", "student": "student", "control": "same network, no teacher"}


def students(summary: dict[str, Any], role: str = "student") -> list[dict[str, Any]]:
    """The rows of all students, or of another role, that have a return; by size."""
    rows = [row for row in named(summary, role).values() if row["iqm"] is not None]
    return sorted(rows, key=lambda row: row["actor_parameters"])


def smallest(summary: dict[str, Any]) -> dict[str, Any] | None:
    """The smallest student that keeps ENOUGH; None where none does.

    >>> row = lambda size, kept: dict(iqm=1.0, actor_parameters=size, kept=kept)
    >>> smallest({"student": row(9, 0.99), "student-2": row(5, 0.96), "student-3": row(2, 0.5)})
    {'iqm': 1.0, 'actor_parameters': 5, 'kept': 0.96}
    """
    return next((row for row in students(summary) if (row["kept"] or 0.0) >= ENOUGH), None)


def show(summary: dict[str, Any], to: Console) -> None:
    """Prints the table of several students, or of a grid's points; nothing where there is one."""
    role = "teacher" if "point" in summary["teacher"] else "student"
    rows = named(summary, role)
    if len(rows) < 2:
        return
    swept = next(iter(rows.values())).get("point", {})
    table = rich.table.Table(*swept, title="by point" if swept else "by size", title_justify="left")
    scores = ("greedy: IQM\n[95 % interval]", "sampled: IQM\n[95 % interval]")
    for heading in ("network", *scores, "kept", "no teacher", "actor\nparameters", "bytes"):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        control = summary.get(name.replace("student", "control", 1))
        kept = "-" if row["kept"] is None else f"{100 * row['kept']:.1f} %"
        table.add_row(
            *[f"{value:g}" for value in row.get("point", {}).values()],
            row["network"],
            _scores(row),
            _scores(row["sampled"]),
            kept,
            _scores(control) if control and role == "student" else "-",
            f"{row['actor_parameters']:,}",
            f"{row['actor_bytes']:,}",
        )
    to.print(table)
    to.print(_verdict(summary, list(rows.values())), highlight=False, markup=False)


def named(summary: dict[str, Any], role: str) -> dict[str, dict[str, Any]]:
    """The rows of all students, or of another role: "student", "student-2", ..."""
    return {
        name: row
        for name, row in summary.items()
        if name.partition("-")[0] == role and isinstance(row, dict)
    }


def _scores(row: dict[str, Any]) -> str:
    if row["iqm"] is None:
        return "-"
    low, high = row["interval"]
    return f"{row['iqm']:.2f}\n[{low:.2f}, {high:.2f}]"


def _verdict(summary: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The line below: the best point, or the smallest student that is enough."""
    scored = [row for row in rows if row["iqm"] is not None]
    if "point" in rows[0] and scored:
        best = max(scored, key=lambda row: row["iqm"])
        words = ", ".join(f"{name} {value:g}" for name, value in best["point"].items())
        return f"the best of {len(rows)} points: {words} ({best['iqm']:.2f})"
    enough = smallest(summary)
    if enough is None:
        return f"no student keeps {100 * ENOUGH:.0f} % of the teacher's return"
    return (
        f"the smallest student that keeps {100 * ENOUGH:.0f} % of the teacher's return: "
        f"{enough['network']}, {enough['actor_parameters']:,} parameters "
        f"({100 * enough['kept']:.1f} %)"
    )


def picture(summary: dict[str, Any], path: Path) -> None:
    """Returns by size, as PNG: students, the same networks without a teacher, the teacher.

    The file is there as a whole or not at all.
    """
    from matplotlib.figure import Figure  # here, because it takes half a second

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes: Any = figure.subplots()
    for role in _INK:
        _curve(axes, students(summary, role), role)
    teacher, floor = summary["teacher"], summary["random"]["mean"]
    wanted = floor + ENOUGH * (teacher["iqm"] - floor)
    axes.axhline(wanted, color="grey", linestyle=":", label=f"{100 * ENOUGH:.0f} % kept")
    enough = smallest(summary)
    if enough is not None:
        label = f"smallest that keeps it: {enough['network']}"
        axes.axvline(enough["actor_parameters"], color="tab:blue", linestyle="--", label=label)
    axes.set_xscale("log")
    axes.set_xlabel("actor parameters")
    axes.set_ylabel("return, greedy: IQM and 95 % interval")
    width = teacher["actor_bytes"] / max(1, teacher["actor_parameters"])
    above = axes.secondary_xaxis("top", functions=(lambda x: x * width, lambda x: x / width))
    above.set_xlabel("bytes")
    axes.set_title(summary["env"])
    axes.legend(fontsize="small")
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, format="png", dpi=120)
    part.replace(path)


def _curve(axes: Any, rows: list[dict[str, Any]], role: str) -> None:
    if not rows:
        return
    sizes, returns = [row["actor_parameters"] for row in rows], [row["iqm"] for row in rows]
    spans = [[row["iqm"] - row["interval"][0] for row in rows]]
    spans += [[row["interval"][1] - row["iqm"] for row in rows]]
    spans = [[max(0.0, each) for each in side] for side in spans]
    style: dict[str, Any] = dict(color=_INK[role], marker="o", capsize=3, label=_WORDS[role])
    axes.errorbar(sizes, returns, spans, **style)
