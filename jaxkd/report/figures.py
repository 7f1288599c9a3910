"""The pictures of a report: SVG whose colours are the page's, so that they are dark on a dark page.

Legend of shapes: `n` seeds, `P` points of a curve.
"""

import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from jaxkd.report import several, statistics

# As they are printed; the page's style sheet has a lighter one of each for the dark.
COLOURS = {"teacher": "#b0522b", "student": "#2563a8", "control": "#6f7680"}
_SIDES = (COLOURS["student"], COLOURS["teacher"], "#5f7f3a", "#7d5a9c", "#9a7b1c", "#3d8a86")
_SHORT = {"control": "no teacher"}
INK, FAINT = "#22252a", "#d9d6cf"
_VARIABLES = {**COLOURS, "ink": INK, "faint": FAINT}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxkd",  # the same bytes every time
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
}


class Curve(NamedTuple):
    """A metric of one phase while it was trained."""

    steps: np.ndarray  # [P] environment steps of one seed
    values: np.ndarray  # [P, n]


class Picture(NamedTuple):
    """One figure, in both of the report's files."""

    title: str
    caption: str  # what is seen, also for those who do not see it
    svg: str
    png: bytes


def learning(curves: dict[str, Curve], level: float | None = None) -> Figure:
    """Returns over training: seeds thin, their IQM thick, its interval as a band.

    Args:
        level: the teacher's return, a dashed line.
    """
    figure, axes = _new("environment steps of one seed", "return")
    if level is not None:
        axes.axhline(level, color=COLOURS["teacher"], dashes=(4, 3), linewidth=1)
    for name, curve in curves.items():
        _draw(axes, curve, COLOURS[name], _SHORT.get(name, name))
    if len(curves) > 1:
        axes.legend(frameon=False, loc="best")
    return figure


def likeness(curve: Curve, what: str, *, log: bool) -> Figure:
    """How like its teacher the student is while it learns."""
    figure, axes = _new("environment steps of one seed", what)
    if log and (curve.values[np.isfinite(curve.values)] > 0).all():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    _draw(axes, curve, COLOURS["student"], "student")
    return figure


def strip(rows: dict[str, dict[str, Any]]) -> Figure:
    """Every seed's mean return as a dot, by policy, beside the IQM and its interval."""
    figure, axes = _new("", "return", height=2.4)
    generator = np.random.default_rng(0)
    for place, (name, row) in enumerate(rows.items()):
        returns = np.array(row["returns"], float)
        found = returns[np.isfinite(returns)]
        jitter = generator.uniform(-0.16, 0.0, found.size)
        axes.plot(place + jitter, found, "o", color=COLOURS[name], alpha=0.55, markersize=4, mew=0)
        if row["iqm"] is not None and None not in row["interval"]:
            axes.plot([place + 0.18] * 2, row["interval"], color=COLOURS[name], linewidth=2)
            axes.plot(place + 0.18, row["iqm"], "D", color=COLOURS[name], markersize=5, mew=0)
    axes.set_xticks(range(len(rows)), [_SHORT.get(name, name) for name in rows])
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.grid(False, axis="x")
    return figure


def sizes(summary: dict[str, Any]) -> Figure:
    """Return against actor parameters, and the smallest student that is enough."""
    figure, axes = _new("actor parameters", "return")
    axes.set_xscale("log")
    for role, colour in COLOURS.items():
        found = several.students(summary, role)
        places = [row["actor_parameters"] for row in found]
        for place, row in zip(places, found, strict=True):
            axes.plot([place] * 2, row["interval"], color=colour, linewidth=1.2)
        label = _SHORT.get(role, role)
        axes.plot(places, [row["iqm"] for row in found], "o-", color=colour, ms=4, label=label)
    top, floor = summary["teacher"]["iqm"], summary["random"]["mean"]
    kept = f"{several.ENOUGH:.0%} kept".replace("%", " %")
    wanted = floor + several.ENOUGH * (top - floor)
    axes.axhline(wanted, color=INK, linewidth=0.7, dashes=(1, 3), label=kept)
    enough = several.smallest(summary)
    if enough:
        size, label = enough["actor_parameters"], f"smallest that keeps it: {enough['network']}"
        axes.axvline(size, color=COLOURS["student"], linewidth=0.7, dashes=(4, 3), label=label)
    axes.margins(x=0.12, y=0.15)
    axes.legend(frameon=False, loc="best", fontsize=7)
    return figure


def profiles(shares: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Performance profiles: the share of seeds that reach each share of the teacher's return.

    Args:
        shares: [n] by environment, of every side by its name; the mean over environments is drawn,
            with its stratified bootstrap interval as a band.
    """
    figure, axes = _new("share of the teacher's return", "share of seeds that reach it")
    highest = max(x.max() for each in shares.values() for x in each.values())
    at = np.linspace(0, max(1.05, highest), 106)
    for number, (name, each) in enumerate(shares.items()):
        reached = lambda x: statistics.profile(x, at)
        middle, low, high = statistics.estimate(reached, each, draws=500)
        colour = _SIDES[number % len(_SIDES)]
        axes.plot(at, middle, color=colour, linewidth=1.6, label=name)
        axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.legend(frameon=False, loc="lower left")
    return figure


def save(path: Path, draw: Any, *given: Any) -> None:
    """What `draw(*given)` makes, as a file of the kind that its suffix says: whole, or not there.

    Raises:
        ValueError: matplotlib writes no such kind.
    """
    part = path.with_name(f".part-{path.name}")
    with matplotlib.rc_context(_STYLE):
        draw(*given).savefig(part, dpi=160, facecolor="white")
    part.replace(path)


def picture(title: str, caption: str, draw: Any, *given: Any, **more: Any) -> Picture:
    """What `draw(*given)` makes, as SVG for a page and PNG for a text."""
    with matplotlib.rc_context(_STYLE):
        figure = draw(*given, **more)
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        figure.savefig(png, format="png", dpi=160, facecolor="white")
    return Picture(title, caption, _of_the_page(svg.getvalue(), title, caption), png.getvalue())


def _new(x: str, y: str, *, height: float = 2.6) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.2, height))
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if x.startswith("environment steps"):
        axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    return figure, axes


def _short(value: float) -> str:
    """A number of steps in few letters: 250k, 1.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _draw(axes: Any, curve: Curve, colour: str, name: str) -> None:
    values = np.where(np.isfinite(curve.values), curve.values, np.nan)
    axes.plot(curve.steps, values, color=colour, linewidth=0.5, alpha=0.3)
    middle, low, high = statistics.curve(values)
    marker = "o" if len(curve.steps) == 1 else ""
    axes.plot(curve.steps, middle, marker=marker, color=colour, linewidth=1.6, label=name)
    if values.shape[1] > 1:
        axes.fill_between(curve.steps, low, high, color=colour, alpha=0.18, linewidth=0)


def _of_the_page(svg: str, title: str, caption: str) -> str:
    """Colours become variables of the page's style sheet; what is no picture goes."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for name, colour in _VARIABLES.items():
        svg = svg.replace(f": {colour}", f": var(--{name}, {colour})")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--sans, sans-serif)", svg)
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0]
    said = f"{title}. {caption}".replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{said}" '
    return re.sub(r"^<svg [^>]*>", f'{head} xmlns:xlink="http://www.w3.org/1999/xlink">', svg)
