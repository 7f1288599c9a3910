"""Finished runs against each other: what their seeds say, and tables to paste. Imports no jax.

Legend of shapes: `n` seeds.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxkd.report import statistics

SHARES = (0.5, 0.9, 0.95, 1.0)  # of the teacher, that seeds are counted by

Rows = list[tuple[str, list[str]]]  # (heading, a cell for every side)


class Side(NamedTuple):
    """One side of a comparison: runs that differ in their environments alone."""

    name: str
    scores: dict[str, np.ndarray]  # [n] by environment, one number a SEED
    shares: dict[str, np.ndarray]  # [n] the same of the teacher's, 0: a random policy; nan: unknown
    areas: dict[str, np.ndarray]  # [n] mean height of the learning curve; nan: unknown


def side(name: str, summaries: Sequence[dict[str, Any]], areas: Sequence[Any], policy: str) -> Side:
    """Of a side's runs, one an environment.

    Args:
        areas: of each run, [n], of the raw returns.
        policy: whose returns count, "student" for one.
    """
    found = Side(name, {}, {}, {})
    for summary, area in zip(summaries, areas, strict=True):
        returns, env = np.array(summary[policy]["returns"], float), summary["env"]
        alive = np.isfinite(returns)
        several = len(summaries) > 1
        found.shares[env] = share(summary, returns)[alive]
        found.scores[env] = found.shares[env] if several else returns[alive]
        area = np.broadcast_to(area, returns.shape)
        found.areas[env] = (share(summary, area) if several else area)[alive]
    return found


def share(summary: dict[str, Any], returns: np.ndarray) -> np.ndarray:
    """(returns - random) / (teacher - random); nan where the teacher is not above chance."""
    top, floor = summary["teacher"]["iqm"], summary.get("random", {}).get("mean")
    kept = summary["teacher"].get("kept")
    if floor is None or top is None or kept is None:
        return np.full(returns.shape, np.nan)
    return (returns - floor) / (top - floor)


def compared(sides: Sequence[Side]) -> Rows:
    """What the seeds say: statistics of every side, and of every other one against the first.

    >>> found = {"Catch-bsuite": np.array([0.0, 1.0, 1.0, 1.0])}
    >>> better = {"Catch-bsuite": np.ones(4)}
    >>> rows = compared([Side("a", found, found, found), Side("b", better, better, better)])
    >>> dict(rows)["P(a seed does better than one of a)"]
    ['-', '0.62 [0.50, 0.88]']
    """
    iqm, better = statistics.iqm, statistics.probability_of_improvement
    normalised = ", share of the teacher" if len(sides[0].scores) > 1 else ""
    rows = [
        ("seeds", [", ".join(str(x.size) for x in each.scores.values()) for each in sides]),
        (f"IQM{normalised}", [_estimate(iqm, each.scores) for each in sides]),
        ("worst seed", [_plain(min(x.min() for x in each.scores.values())) for each in sides]),
        (f"area under the curve{normalised}", [_estimate(iqm, each.areas) for each in sides]),
    ]
    against = [_estimate(better, each.scores, sides[0].scores) for each in sides[1:]]
    rows.append((f"P(a seed does better than one of {sides[0].name})", ["-", *against]))
    for threshold in SHARES:
        reached = lambda x, threshold=threshold: statistics.profile(x, [threshold])[..., 0]
        cells = [_estimate(reached, each.shares) for each in sides]
        rows.append((f"seeds with {threshold:.0%} of the teacher".replace("%", " %"), cells))
    return [(heading, cells) for heading, cells in rows if set(cells) != {"-"}]


def _estimate(statistic: Any, *scores: dict[str, np.ndarray]) -> str:
    if not all(x.size and np.isfinite(x).all() for each in scores for x in each.values()):
        return "-"
    value, low, high = statistics.estimate(statistic, *scores)
    return f"{_plain(value)} [{_plain(low)}, {_plain(high)}]"


def _plain(value: float) -> str:
    return f"{value:.2f}"


def markdown(names: Sequence[str], rows: Rows) -> str:
    """A table for a README or an issue.

    >>> print(markdown(["a"], [("IQM", ["1.00"])]))
    | | a |
    |---|---:|
    | IQM | 1.00 |
    """
    lines = [("", list(names)), *rows]
    texts = [f"| {' | '.join([heading, *cells])} |" for heading, cells in lines]
    texts[0] = texts[0].replace("|  |", "| |", 1)
    return "\n".join([texts[0], f"|---|{'---:|' * len(names)}", *texts[1:]])


def latex(names: Sequence[str], rows: Rows) -> str:
    r"""A table for a paper; it needs booktabs.

    >>> print(latex(["a_b"], [("95 %", ["1"])]))
    \begin{tabular}{lr}
    \toprule
     & a\_b \\
    \midrule
    95 \% & 1 \\
    \bottomrule
    \end{tabular}
    """

    def line(cells: Sequence[str]) -> str:
        safe = [cell.translate(_LATEX) for cell in cells]
        return f"{' & '.join(safe)} \\\\"

    body = [line([heading, *cells]) for heading, cells in rows]
    head = [r"\begin{tabular}{l" + "r" * len(names) + "}", r"\toprule", line(["", *names])]
    return "\n".join([*head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


_LATEX = str.maketrans(
    {
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
)
