"""The headline table of a distillation."""

import sys
from typing import Any

import rich.table
from rich.console import Console

_NAMES = {"teacher": "teacher", "student": "student", "control": "same network, no teacher"}
_WIDTH = 120  # where the output is no terminal


def console() -> Console:
    """Standard output; wide enough for a table where it is no terminal."""
    found = Console(file=sys.stdout)
    return found if found.is_terminal else Console(file=sys.stdout, width=_WIDTH)


def headline(summary: dict[str, Any], to: Console) -> None:
    """Prints the table of a summary.json, what compares the policies and what the run took."""
    first = summary["teacher"]
    seeds, episodes = len(first["returns"]), first["episodes"]
    played = f"{seeds} seeds, {episodes} greedy episodes each, every policy acting alone"
    title = f"{summary['env']}: {played}"
    table = rich.table.Table(title=title, title_justify="left", title_style="bold")
    table.add_column("policy")
    for heading in (
        "return IQM\n[95 % interval]",
        "teacher\nkept",
        "actor\nparameters",
        "FLOPs an\naction",
        "latency,\nbatch 1",
        "bytes",
    ):
        table.add_column(heading, justify="right")
    for name in _rows(summary):
        table.add_row(f"{_NAMES[name]}\n{summary[name]['network']}", *_cells(summary[name]))
    to.print(table)
    for line in _lines(summary):
        to.print(line, highlight=False, markup=False)


def _rows(summary: dict[str, Any]) -> list[str]:
    """The policies of a summary: all of a distillation, or a teacher alone."""
    return [name for name in _NAMES if name in summary]


def _number(value: float | None, form: str) -> str:
    """A number in words; "-" where there is none."""
    return "-" if value is None else format(value, form)


def _cells(row: dict[str, Any]) -> list[str]:
    """One policy's, in the order of the headings."""
    low, high = (_number(end, ".2f") for end in row["interval"])
    return [
        f"{_number(row['iqm'], '.2f')}\n[{low}, {high}]",
        "-" if row["kept"] is None else f"{100 * row['kept']:.1f} %",
        f"{row['actor_parameters']:,}{_ratio(row['size_ratio'])}",
        _number(row["flops_per_action"], ",.0f"),
        f"{row['latency_us']:.0f} µs",
        f"{row['actor_bytes']:,}",
    ]


def _ratio(ratio: float | None) -> str:
    """A size against the teacher's, on a line of its own; nothing for an equal one."""
    if ratio is None or ratio == 1:
        return ""
    return f"\n1/{1 / ratio:.1f}" if ratio < 1 else f"\n{ratio:.1f}x"


def _lines(summary: dict[str, Any]) -> list[str]:
    """Below the table."""
    rows = {name: summary[name] for name in _rows(summary)}
    steps = ", ".join(
        f"{name} {row['env_steps']:,}" if row["env_steps"] else f"{name} from a file"
        for name, row in rows.items()
    )
    discounted = ", ".join(
        f"{name} {_number(row['discounted_iqm'], '.3f')}" for name, row in rows.items()
    )
    floor = _number(summary["random"]["mean"], ".2f")
    wall, compiling = summary["wall_seconds"], summary["compile_seconds"]
    lines = [
        f"random policy {floor} = 0 % kept; discounted return (0.99) IQM: {discounted}",
        f"environment steps a seed: {steps}",
        f"wall {wall:.1f} s, and {compiling:.1f} s of compiling",
    ]
    if "kl" in summary:
        divergence = f"KL(teacher || student) {_number(summary['kl'], '.4f')} nats"
        lines.insert(0, f"{_alike(summary)}; {divergence}")
    return lines


def _alike(summary: dict[str, Any]) -> str:
    """How near the student's greedy actions are to the teacher's."""
    if "agreement" in summary:
        share = 100 * summary["agreement"]
        return f"greedy actions equal to the teacher's on {share:.1f} % of the student's states"
    distance = summary["action_distance"]
    return (
        f"greedy actions {distance:.3f} from the teacher's on the student's states (range [-1, 1])"
    )
