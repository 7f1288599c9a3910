"""The rows of a report's headline table, each figure in words and as it stands in summary.json."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxkd.report.table import interval, number, ratio, rows

# Settings that say nothing of the result.
UNTOLD = (
    *("out", "quiet", "traceback", "no_cache", "no_report", "track"),
    *("checkpoint_every", "dry_run"),
)


class Fact(NamedTuple):
    """One cell."""

    text: str
    value: Any  # of summary.json; None: there is none
    policy: str


def facts(summary: dict[str, Any]) -> list[tuple[str, list[Fact]]]:
    """(heading, a cell for every policy), top to bottom.

    >>> row = dict(network="mlp:4", iqm=2.0, interval=[1.0, 3.0], kept=None, returns=[1.0, 3.0])
    >>> heading, cells = facts({"teacher": row})[1]
    >>> heading, cells[0].text
    ('return, greedy: IQM [95 % interval]', '2.00 [1.00, 3.00]')
    """
    found = []
    for heading, read in _ROWS:
        cells = [_fact(summary, name, read) for name in rows(summary)]
        if any(cell.text != "-" for cell in cells):
            found.append((heading, cells))
    return found


def _fact(summary: dict[str, Any], policy: str, read: Callable) -> Fact:
    try:
        text, value = read(summary, summary[policy], policy)
    except (KeyError, TypeError):  # a summary of another version
        return Fact("-", None, policy)
    return Fact(text if value is not None else "-", value, policy)


def _scored(row: dict[str, Any]) -> tuple[str, Any]:
    return f"{number(row['iqm'], '.2f')} {interval(row)}", row["iqm"]


def _kept(row: dict[str, Any]) -> tuple[str, Any]:
    return number(row["kept"], ".1%").replace("%", " %"), row["kept"]


def _worst(row: dict[str, Any]) -> tuple[str, Any]:
    found = [value for value in row["returns"] if value is not None]
    worst = min(found) if found else None
    return number(worst, ".2f"), worst


def _of_student(name: str, form: str) -> Callable:
    """What compares student and teacher stands in the student's column."""

    def read(summary: dict[str, Any], row: dict[str, Any], policy: str) -> tuple[str, Any]:
        value = summary[name] if policy == "student" else None
        return number(value, form).replace("%", " %"), value

    return read


def _plain(name: str, form: str, unit: str = "") -> Callable:
    def read(summary: dict[str, Any], row: dict[str, Any], policy: str) -> tuple[str, Any]:
        return number(row[name], form) + unit, row[name]

    return read


def _size(summary: dict[str, Any], row: dict[str, Any], policy: str) -> tuple[str, Any]:
    share = ratio(row["size_ratio"]).strip()
    return f"{row['actor_parameters']:,}{share and f' ({share})'}", row["actor_parameters"]


_ROWS: tuple[tuple[str, Callable], ...] = (
    ("network", lambda summary, row, policy: (row["network"], row["network"])),
    ("return, greedy: IQM [95 % interval]", lambda summary, row, policy: _scored(row)),
    ("return, sampled: IQM [95 % interval]", lambda summary, row, policy: _scored(row["sampled"])),
    ("worst seed, greedy", lambda summary, row, policy: _worst(row)),
    ("kept of the teacher, greedy", lambda summary, row, policy: _kept(row)),
    ("kept of the teacher, sampled", lambda summary, row, policy: _kept(row["sampled"])),
    ("actor parameters", _size),
    ("bytes", _plain("actor_bytes", ",")),
    ("FLOPs an action", _plain("flops_per_action", ",.0f")),
    ("latency, batch of one", _plain("latency_us", ".0f", " µs")),
    ("greedy actions equal to the teacher's", _of_student("agreement", ".1%")),
    ("greedy actions' distance from the teacher's", _of_student("action_distance", ".3f")),
    ("KL(teacher || student), nats", _of_student("kl", ".4f")),
    ("environment steps a seed", _plain("env_steps", ",")),
)
