"""The headline table of a distillation."""

import sys
from typing import Any

import rich.table
from rich.console import Console

NAMES = {"teacher": "teacher", "student": "student", "control": "same network, no teacher"}
_WIDTH = 128  # where the output is no terminal
_FALLING = 0.8  # a KL below so much of what it was at half of the updates has not flattened
_SAME = 32  # games are few where each is played so often
_TRY = (
    "The teacher has learnt nothing to keep. Try more --steps; a memory, where observations hide "
    "something (networks.lstm, then --teacher FILE); exploration, where rewards are rare "
    "(methods.exploration)."
)


def console() -> Console:
    """Standard output; wide enough for a table where it is no terminal."""
    found = Console(file=sys.stdout)
    return found if found.is_terminal else Console(file=sys.stdout, width=_WIDTH)


def headline(summary: dict[str, Any], to: Console) -> None:
    """Prints the table of a summary.json, what compares the policies and what the run took."""
    title = f"{summary['env']}: {played(summary)}"
    table = rich.table.Table(title=title, title_justify="left", title_style="bold")
    table.add_column("policy")
    for heading in (
        "greedy: IQM\n[95 % interval]",
        "sampled: IQM\n[95 % interval]",
        "kept, greedy\nand sampled",
        "actor\nparameters",
        "FLOPs an\naction",
        "latency,\nbatch 1",
        "bytes",
    ):
        table.add_column(heading, justify="right")
    for name in rows(summary):
        table.add_row(f"{NAMES[name]}\n{summary[name]['network']}", *_cells(summary[name]))
    to.print(table)
    for line in _lines(summary):
        to.print(line, highlight=False, markup=False)


def played(summary: dict[str, Any]) -> str:
    """How much was played, and what intervals are over."""
    first = summary["teacher"]
    seeds, episodes = len(first["returns"]), first["episodes"]
    over = "seeds" if seeds > 1 else "episodes"
    how = f"{episodes} episodes each, every policy acting alone"
    return f"{seeds} seed{'s' if seeds > 1 else ''}, {how}; intervals over {over}"


def rows(summary: dict[str, Any]) -> list[str]:
    """The policies of a summary: all of a distillation, or a teacher alone."""
    return [name for name in NAMES if name in summary]


def number(value: float | None, form: str) -> str:
    """A number in words; "-" where there is none."""
    return "-" if value is None else format(value, form)


def _cells(row: dict[str, Any]) -> list[str]:
    """One policy's, in the order of the headings."""
    kept = [number(scores["kept"], ".1%").replace("%", " %") for scores in (row, row["sampled"])]
    return [
        f"{number(row['iqm'], '.2f')}\n{interval(row)}",
        f"{number(row['sampled']['iqm'], '.2f')}\n{interval(row['sampled'])}",
        "\n".join(kept),
        f"{row['actor_parameters']:,}{ratio(row['size_ratio'])}",
        number(row["flops_per_action"], ",.0f"),
        f"{row['latency_us']:.0f} µs",
        f"{row['actor_bytes']:,}",
    ]


def interval(scores: dict[str, Any]) -> str:
    """Both ends in words."""
    low, high = (number(end, ".2f") for end in scores["interval"])
    return f"[{low}, {high}]"


def ratio(ratio: float | None) -> str:
    """A size against the teacher's, on a line of its own; nothing for an equal one."""
    if ratio is None or ratio == 1:
        return ""
    return f"\n1/{1 / ratio:.1f}" if ratio < 1 else f"\n{ratio:.1f}x"


def _lines(summary: dict[str, Any]) -> list[str]:
    """Below the table."""
    shown = {name: summary[name] for name in rows(summary)}
    steps = ", ".join(
        f"{name} {row['env_steps']:,}" if row["env_steps"] else f"{name} from a file"
        for name, row in shown.items()
    )
    discounted = ", ".join(
        f"{name} {number(row['discounted_iqm'], '.3f')}" for name, row in shown.items()
    )
    floor = f"{number(summary['random']['mean'], '.2f')} {interval(summary['random'])}"
    wall, compiling = summary["wall_seconds"], summary["compile_seconds"]
    lines = [
        f"random policy {floor} = 0 % kept; discounted return (0.99) IQM: {discounted}",
        f"environment steps a seed: {steps}",
        f"wall {wall:.1f} s, and {compiling:.1f} s of compiling",
        *cautions(summary),
    ]
    if "kl" in summary:
        divergence = f"KL(teacher || student) {number(summary['kl'], '.4f')} nats"
        lines.insert(0, f"{_alike(summary)}; {divergence}")
    return lines


def cautions(summary: dict[str, Any]) -> list[str]:
    """What a reader should know before believing the table."""
    teacher, kl = summary["teacher"], summary["kl_while_learning"]
    floor = f"a random policy's {interval(summary['random'])}"
    found = [
        f"kept is -: the teacher's {interval(scores)} ({way}) is not above {floor}."
        for way, scores in (("greedy", teacher), ("sampled", teacher["sampled"]))
        if scores["kept"] is None and scores["iqm"] is not None
    ]
    found += [_TRY] if len(found) == 2 else []
    if kl and None not in kl.values() and kl["end"] < _FALLING * kl["half"]:
        found.append(
            f"the student's KL was still falling: {kl['half']:.3g} nats at half of its updates, "
            f"{kl['end']:.3g} at the end. More --student-steps may keep more."
        )
    few = [
        name for name in rows(summary) if _few_games(summary, summary[name]["different_episodes"])
    ]
    if few:
        games = ", ".join(f"{name} {summary[name]['different_episodes']:.0f}" for name in few)
        found.append(
            f"of {teacher['episodes']} greedy episodes a seed so many differ: {games}. One game "
            f"played again says no more: judge sampled, or with --sticky 0.1."
        )
    return found


def _few_games(summary: dict[str, Any], different: float | None) -> bool:
    """Whether the same few games were played again and again: few endings, and no more starts than
    endings. Where starts differ and endings do not, all games ended equally well.
    """
    episodes, starts = summary["teacher"]["episodes"], summary["different_starts"]
    return different is not None and starts <= different <= episodes / _SAME


def _alike(summary: dict[str, Any]) -> str:
    """How near the student's greedy actions are to the teacher's."""
    if "agreement" in summary:
        share = 100 * summary["agreement"]
        return f"greedy actions equal to the teacher's on {share:.1f} % of the student's states"
    distance = summary["action_distance"]
    return (
        f"greedy actions {distance:.3f} from the teacher's on the student's states (range [-1, 1])"
    )
