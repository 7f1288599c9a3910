"""`report.html` and `report.md` of a run's directory: what its files tell, and a film of its
policies. What is missing is said in a sentence.
"""

import base64
import json
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from jaxkd import presets
from jaxkd.cli import card as cards
from jaxkd.policies import load_policy
from jaxkd.report import figures, several
from jaxkd.report.facts import UNTOLD, Fact, facts
from jaxkd.report.figures import Curve, Picture, picture
from jaxkd.report.film import Film, film
from jaxkd.report.table import NAMES, cautions, played, rows
from jaxkd.run import seeds

HTML, TEXT, GIF, STILL = "report.html", "report.md", "report.gif", "report.png"
CITE = """@software{{jaxkd,
  title = {{jaxkd: small students from big teachers}},
  author = {{{{The jaxkd authors}}}},
  version = {{{version}}},
  year = {{2026}},
}}"""


_NO_TABLE = dict(lead="", headline=[], played="", notes=[])
_NO_FILM = dict(film=None, film_caption="", film_said="")


class Report(NamedTuple):
    """What the templates show, in the order in which they show it."""

    title: str
    card: dict[str, Any]
    summary: dict[str, Any]  # {} of a run that has not ended
    missing: list[str]  # a sentence each
    lead: str  # the table in a sentence
    headline: list[tuple[str, list[Fact]]]
    played: str  # what the table is of
    notes: list[str]  # to be read before the table is believed
    film: Film | None
    film_caption: str
    film_said: str  # to those who do not see it
    pictures: list[Picture]
    settings: dict[str, Any]
    again: str  # the command that does it again
    cite: str
    names: dict[str, str]  # of the policies


def write(run: Path, card: dict[str, Any]) -> list[Path]:
    """Writes the report of a run into its directory; returns the files.

    Args:
        card: the run's, as `cli.card.read` gives it.

    Raises:
        OSError: where they cannot be written.
    """
    report = gather(run, card)
    made = {HTML: _render(HTML, report).encode(), TEXT: _render(TEXT, report).encode()}
    made |= {GIF: report.film.gif} if report.film else {}
    made |= {f"report-{number}.png": each.png for number, each in enumerate(report.pictures, 1)}
    for name, content in made.items():
        part = run / f".{name}.part"
        part.write_bytes(content)
        part.replace(run / name)
    return [run / name for name in made]


def gather(run: Path, card: dict[str, Any]) -> Report:
    """Everything that the files of a run tell, however many of them there are."""
    missing: list[str] = []

    def attempt(what: str, nothing: Any, work: Callable, *given: Any) -> Any:
        try:
            return work(*given)
        except Exception as error:  # whatever a damaged file leads to: the others are shown
            line = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            missing.append(f"{what}: {line}")
            return nothing

    if card["status"] != "finished":
        missing.append(f"The run is {card['status']}: `jaxkd resume {run}` goes on with it")
    summary = attempt("No table", {}, _summary, run, card)
    lines = attempt("No curves", [], _lines, run)
    return Report(
        title=_title(card),
        card=card,
        summary=summary,
        missing=missing,
        **attempt("No table", _NO_TABLE, _table, summary),
        **attempt("No film", _NO_FILM, _film, run, card, summary),
        pictures=attempt("No pictures", [], _pictures, lines, summary),
        settings={
            name: x
            for name, x in card["settings"].items()
            if x not in (None, [], "") and name not in UNTOLD
        },
        again="jaxkd " + " ".join(map(shlex.quote, card.get("argv", []))),
        cite=CITE.format(version=card["versions"].get("jaxkd-rl", "?")),
        names=NAMES,
    )


def _table(summary: dict[str, Any]) -> dict[str, Any]:
    if not summary:
        return _NO_TABLE
    lead, notes = _lead(summary), [line[0].upper() + line[1:] for line in cautions(summary)]
    return dict(lead=lead, headline=facts(summary), played=played(summary), notes=notes)


def _title(card: dict[str, Any]) -> str:
    method = card["settings"].get("method") or card["command"]
    return f"{card['env']}: {method.replace('_', ' ')}"


def _lead(summary: dict[str, Any]) -> str:
    """The table in a sentence; nothing where it says nothing."""
    student, control = (summary.get(name, {}) for name in ("student", "control"))
    if student.get("kept") is None or not student.get("size_ratio"):
        return ""
    size, whole = student["actor_parameters"], summary["teacher"]["actor_parameters"]
    said = f"The student keeps {_share(student['kept'])} of its teacher's return "
    said += f"with {size:,} of {whole:,} parameters"
    if control.get("kept") is not None:
        said += f"; the same network without a teacher reaches {_share(control['kept'])}"
    enough = several.smallest(summary)
    if enough and len(several.students(summary)) > 1:
        said += f". The smallest that keeps {_share(several.ENOUGH)} is {enough['network']}, "
        said += f"with {enough['actor_parameters']:,} parameters"
    return f"{said}."


def _share(value: float) -> str:
    return f"{value:.0%}".replace("%", " %")


def _summary(run: Path, card: dict[str, Any]) -> dict[str, Any]:
    if not (run / cards.SUMMARY).exists():
        raise FileNotFoundError("there is no summary.json, which is written when a run ends")
    found = cards.summary(run, card)
    if not found:
        raise ValueError(f"{run / cards.SUMMARY} is damaged")
    return found


def _lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl as far as it can be read."""
    path, found = run / "metrics.jsonl", []
    if not path.exists():
        raise FileNotFoundError("there is no metrics.jsonl, which is written while a run trains")
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # a line that was being written when the process was killed
            continue
    return found


# --- pictures -----------------------------------------------------------------------------------


def curve(lines: list[dict[str, Any]], phase: str, metric: str) -> Curve | None:
    """A metric of a phase; None where it has no value."""
    here = [line for line in lines if line["phase"] == phase and metric in line["seeds"]]
    if not here:
        return None
    values = np.array([line["seeds"][metric] for line in here], float)
    if not np.isfinite(values).any():
        return None
    return Curve(np.array([line["env_steps"] for line in here], float), values)


def _pictures(lines: list[dict[str, Any]], summary: dict[str, Any]) -> list[Picture]:
    found = []
    scored = {name: summary[name] for name in rows(summary)} if summary else {}
    curves = {name: curve(lines, name, "return") for name in NAMES}
    learners = {name: each for name, each in curves.items() if each and name != "teacher"}
    level = scored.get("teacher", {}).get("iqm")
    if learners:
        caption = _said("Return of the episodes that ended while training", learners)
        caption += " Dashed: the teacher." if level is not None else ""
        found.append(picture("Learning", caption, figures.learning, learners, level))
    if curves["teacher"]:
        caption = _said("The teacher while it was trained", {"teacher": curves["teacher"]})
        teacher = {"teacher": curves["teacher"]}
        found.append(picture("The teacher", caption, figures.learning, teacher))
    if scored:
        caption = "Mean return of every seed, acting alone and greedily; beside it the "
        caption += "interquartile mean and its 95 % interval."
        found.append(picture("Every seed", caption, figures.strip, scored))
    return found + _by_size(summary) + _alike(lines)


def _by_size(summary: dict[str, Any]) -> list[Picture]:
    """Return against size, of a run with students of several sizes."""
    sizes = {row["actor_parameters"] for row in several.students(summary)}
    if len(sizes) < 2:
        return []
    caption = "Return of every size, greedy: interquartile mean and 95 % interval over seeds."
    return [picture("Size against return", caption, figures.sizes, summary)]


def _said(what: str, curves: dict[str, Curve]) -> str:
    number = max(each.values.shape[1] for each in curves.values())
    if number == 1:
        return f"{what}; one seed."
    many = f"{number} seeds (thin), their interquartile mean (thick), its 95 % interval (band)"
    return f"{what}: {many}."


def _alike(lines: list[dict[str, Any]]) -> list[Picture]:
    """How alike student and teacher became, by what the run has kept of it."""
    found = []
    for metric, title, what, log in (
        ("loss/agreement", "Agreement", "share of equal greedy actions", False),
        ("loss/kl", "Divergence", "KL(teacher || student), nats", True),
    ):
        each = curve(lines, "student", metric)
        if each:
            caption = _said(
                f"{what[0].upper()}{what[1:]} on the states of whoever acts", {"": each}
            )
            found.append(picture(title, caption, figures.likeness, each, what, log=log))
    return found


# --- the film -----------------------------------------------------------------------------------


def _film(run: Path, card: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """The student whose return is the median of all, and its teacher, from one beginning."""
    seed, number = _median_seed(summary), card["settings"]["seeds"]
    loaded = {}
    for name in ("teacher", "student"):
        own, shared = run / f"{name}s" / f"{seed:02d}.npz", run / f"{name}s" / "00.npz"
        path = own if own.exists() else shared  # a teacher from a file is every seed's
        if path.exists():
            loaded[name] = load_policy(path)
    if not loaded:
        raise FileNotFoundError("there are no saved policies")
    given: dict[str, Any] = card["preset"]
    given = {name: tuple(x) if isinstance(x, list) else x for name, x in given.items()}
    env = presets.make_env(card["env"], presets.Preset(**given)._replace(num_envs=1))
    shown = film(env, loaded, seeds(card["settings"]["seed"], 1)[0])
    if shown is None:
        raise ValueError(f"nobody has written how {card['env']} looks (jaxkd/report/drawing.py)")
    said = [f"Seed {seed}, whose {list(loaded)[-1]}'s return is the median of {number}."]
    said += ["Both begin alike."] if len(loaded) > 1 else []
    said += ["Greedy actions; the numbers are the returns so far."]
    longest = max(shown.steps.values())
    said += [f"Only the first {longest} steps are shown."] if shown.cut else []
    ends = (f"{name} {shown.returns[name]:.4g} in {shown.steps[name]} steps" for name in loaded)
    what = f"{card['env']} played by {' and '.join(loaded)}, returns: {', '.join(ends)}."
    return dict(film=shown, film_caption=" ".join(said[number == 1 :]), film_said=what)


def _median_seed(summary: dict[str, Any]) -> int:
    """The seed of the middle one of all returns; 0 where nothing is known."""
    returns = summary.get("student", summary.get("teacher", {})).get("returns", [])
    known = sorted((x, seed) for seed, x in enumerate(returns) if x is not None)
    return known[(len(known) - 1) // 2][1] if known else 0


# --- templates ----------------------------------------------------------------------------------


def _render(name: str, report: Report) -> str:
    def source(wanted: str) -> str:
        return resources.files("jaxkd.report").joinpath(f"templates/{wanted}").read_text("utf-8")

    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(source),
        autoescape=name.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters["plainly"] = _plainly
    made.filters["embedded"] = lambda data: base64.b64encode(data).decode()
    made.filters["day"] = lambda seconds: datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
    return made.get_template(name).render(report._asdict())


def _plainly(value: Any) -> str:
    """A setting in words."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_plainly, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "default", True: "yes", False: "no"}[value]
    return str(value)
