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
    """Prints the table of a summary.json, and below it what compares the policies and what the run took."""
    seeds, episodes = len(summary["student"]["returns"]), summary["student"]["episodes"]
    title = f"{summary['env']}: {seeds} seeds, {episodes} greedy episodes each, every policy acting alone"
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
    for name, label in _NAMES.items():
        table.add_row(f"{label}\n{summary[name]['network']}", *_cells(summary[name]))
    to.print(table)
    for line in _lines(summary):
        to.print(line, highlight=False, markup=False)


def _cells(row: dict[str, Any]) -> list[str]:
    low, high = row["interval"]
    ratio = row["size_ratio"]
    size = f"{row['actor_parameters']:,}" + (
        "" if ratio == 1 else f"\n1/{1 / ratio:.1f}" if ratio < 1 else f"\n{ratio:.1f}x"
    )
    return [
        f"{row['iqm']:.2f}\n[{low:.2f}, {high:.2f}]",
        "-" if row["kept"] is None else f"{100 * row['kept']:.1f} %",
        size,
        "-" if row["flops_per_action"] is None else f"{row['flops_per_action']:,.0f}",
        f"{row['latency_us']:.0f} µs",
        f"{row['actor_bytes']:,}",
    ]


def _lines(summary: dict[str, Any]) -> list[str]:
    if "agreement" in summary:
        alike = f"greedy actions equal to the teacher's on {100 * summary['agreement']:.1f} % of the student's states"
    else:
        alike = f"greedy actions {summary['action_distance']:.3f} from the teacher's on the student's states (range [-1, 1])"
    steps = {
        name: f"{summary[name]['env_steps']:,}" if summary[name]["env_steps"] else "from a file"
        for name in _NAMES
    }
    discounted = ", ".join(f"{name} {summary[name]['discounted_iqm']:.3f}" for name in _NAMES)
    return [
        f"{alike}; KL(teacher || student) {summary['kl']:.4f} nats",
        f"random policy {summary['random']['mean']:.2f} = 0 % kept; discounted return (0.99) IQM: {discounted}",
        "environment steps a seed: "
        + ", ".join(f"{name} {count}" for name, count in steps.items()),
        f"wall {summary['wall_seconds']:.1f} s, and {summary['compile_seconds']:.1f} s of compiling",
    ]
