"""Puts the committed figures into the texts: all of benchmarks/README.md, and in README.md and
NOTES.md what stands between `<!-- made: NAME -->` and `<!-- end -->`.

    python benchmarks/tables.py

No figure of a JSON file is written by hand: tests/test_results.py compares every text with what
this makes of the JSON files today.
"""

import ast
import json
import re
import textwrap
from pathlib import Path

import numpy as np

from benchmarks import answers
from benchmarks.answers import mean, read
from jaxkd import presets

HERE = Path(__file__).parent
TOP = """# What the scripts found

Made by `benchmarks/tables.py` from `results/`; edits are lost. How to run one: `python
benchmarks/studies/gates.py --help` from the checkout's root, with the package installed as editable
(`make` does that) or `PYTHONPATH=.`. `--size full`, the default, makes what is committed; `--size
cpu` says something within a few minutes on two cores, `--size tiny` runs every line in seconds and
says nothing; `--seeds N` takes another number of seeds. Results go to runs/benchmarks/, those of a
smaller size or of other seeds to a folder of their own in it; `--commit` writes `results/`, of the
full size alone. A call that was cut goes on where it stopped: arms are kept in
runs/benchmarks/kept, and run again where settings, seeds, random streams, jaxkd's source or
versions are others, with `--fresh` all of them; what is only measured (speeds) is kept
until its call has ended. What was tried and not kept is in [NOTES.md](NOTES.md), the accelerator's
instructions in [speed/accelerator.md](speed/accelerator.md).

Figures are means over seeds, students alone and greedy, 10 seeds and two CPU cores unless said; in
brackets the 95 % bootstrap interval of the mean, left out where the seeds agree or there is only
one. Whoever runs a script again on other code, another jax or another processor gets other last
bits, hence other episodes: expect figures within the intervals, not the same digits
([the same figure again](NOTES.md#the-same-figure-again)).
"""
PAIR = re.compile(r"(<!-- made: (\w+) ?([^>]*?) -->)(?:\n( *))?.*?<!-- end -->", re.DOTALL)


def table(heads: tuple[str, ...], rows: list[tuple]) -> str:
    """Markdown."""
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def scripts(folder: str) -> str:
    """Each script and the first paragraph of its docstring."""
    rows = []
    for file in sorted((HERE / folder).glob("*.py")):
        doc = ast.get_docstring(ast.parse(file.read_text())) or ""
        if '__name__ == "__main__"' in file.read_text():
            rows.append((f"`{file.name}`", " ".join(doc.split("\n\n")[0].split())))
    return table(("script", "what it asks"), rows)


def gates(*names: str) -> str:
    """Teachers, students and controls of these environments, default all."""
    files = sorted((HERE / "results/studies/gates").glob("*.json"))
    rows = []
    for name in names or [file.stem for file in files]:
        found = read(f"studies/gates/{name}")
        teacher = f"{found['the_teacher']['return']:.1f}"
        row = (name, teacher, mean(found["student"]), mean(found["control"]))
        worst, seeds = f"{found['student']['worst']:.1f}", len(found["student"]["seeds"])
        rows.append(row if names else (*row, worst, seeds))
    heads = ("environment", "the teacher", "students", "without a teacher")
    return table(heads if names else (*heads, "worst student", "seeds"), rows)


def normalising() -> str:
    """MountainCar's teachers without what the preset normalises."""
    found = read("studies/gates/MountainCar-v0")
    lesser = [mean(row) for role, row in found.items() if role.startswith("without")]
    return (
        f"Teachers of MountainCar that do not normalise observations reach {lesser[0]}, with "
        f"rewards as they are too {lesser[1]}, where the preset's reach {mean(found['teacher'])}."
    )


def sticky() -> str:
    """What students keep in the games that are judged with sticky actions, greedy and sampled."""
    told = []
    for file in sorted((HERE / "results/studies/gates").glob("*.json")):
        found = json.loads(file.read_text())
        if "fraction_sampled" in found["student"]:
            student, control = (
                f"{row['fraction_of_teacher']:.2f} greedy and {row['fraction_sampled']:.2f} sampled"
                for row in (found["student"], found["control"])
            )
            told.append(f"in {file.stem} students {student}, without a teacher {control}")
    return (
        "With sticky actions (.1), of the teacher's return above the random policy's is kept: "
        f"{'; '.join(told)}."
    )


def everywhere() -> str:
    """Teachers, and what students keep of them, by default settings."""
    rows = []
    for file in sorted((HERE / "results/studies/everywhere").glob("*.json")):
        found = json.loads(file.read_text())
        today, cells = found["today"], []
        for how, kept in found["kept"]["today"].items():
            teacher = f"{np.mean(today['teacher'][how]):.2f}"
            cells.append(teacher if kept is None else f"{teacher}, {kept:.2f}")
        for before in ("teacher", "student"):
            row = found.get("earlier", {}).get(before)
            cells.append(f"{np.mean(row['greedy']):.2f}" if row else "-")
        best = "{} ({})".format(*found["reference"]) if found["reference"] else "not known"
        rows.append((file.stem, f"{today['random']:.2f}", best, *cells))
    heads = ("environment", "random", "best", "greedy: teachers, kept", "sampled: teachers, kept")
    return table((*heads, "teachers earlier", "students earlier"), rows)


def methods() -> str:
    """Every method, its paper and what it needs."""
    rows = [(f"`{name}`", m.paper, m.needs) for name, m in presets.METHODS.items()]
    return table(("method", "paper", "needs"), rows)


def exploration() -> str:
    """Seeds that solve, and their median steps."""
    rows = []
    for file in sorted((HERE / "results/studies/exploration").glob("*.json")):
        for arm, made in json.loads(file.read_text())["arms"].items():
            solved = f"{made['solved']}/{len(made['steps'])}"
            rows.append((file.stem, arm, solved, f"{made['median']:,.0f}"))
    return table(("part", "arm", "solved", "median steps"), rows)


def peers() -> str:
    """Speed beside other libraries."""
    rows = []
    for name, row in read("speed/peers")["rows"].items():
        speeds = [f"{row[side]['steps_per_second'] / 1e3:,.1f}k" for side in ("ours", "theirs")]
        rows.append((name, *speeds, f"{row['ratio']:.2f}"))
    return table(("peer", "ours, steps/s", "theirs, steps/s", "ratio"), rows)


def throughput() -> str:
    """Steps a second on two CPU cores."""
    rows = []
    for row in read("speed/throughput")["rows"]:
        speeds = [
            f"{row['steps_per_second'][part] / 1e3:,.0f}k"
            for part in ("env", "distillation", "ppo")
        ]
        rows.append((row["env"], f"{row['num_envs']} x {row['seeds']}", *speeds))
    heads = ("environment", "environments x seeds", "environment alone", "distillation", "PPO")
    return table(heads, rows)


def accelerator() -> str:
    """Steps a second on an accelerator."""
    found, rows = read("speed/accelerator"), []
    for name, row in found["rows"].items():
        for entry in row["entries"]:
            if "steps_per_second" in entry and "seeds" in entry:
                speed = f"{entry['steps_per_second'] / 1e6:,.1f}M"
                rows.append((name, entry["num_envs"], entry["seeds"], speed))
    made = found["made"]
    heads = ("row", "environments", "seeds", "steps/s")
    return f"{made['device']}, {made['date']}; {made['note']}.\n\n{table(heads, rows)}"


def text() -> str:
    """All of benchmarks/README.md."""
    questions = table(("script", "question", "answer"), answers.questions())
    parts = {
        "Answers": questions,
        "Studies": scripts("studies"),
        "Speed": scripts("speed"),
        "Teachers and students (`studies/gates.py`)": f"{gates()}\n\n{normalising()}\n\n{sticky()}",
        "By default settings, 4 seeds (`studies/everywhere.py`)": everywhere(),
        "Exploration (`studies/exploration.py`)": exploration(),
        "Beside other libraries, two CPU cores (`speed/peers.py`)": peers(),
        "Steps a second, two CPU cores (`speed/throughput.py`)": throughput(),
        "Steps a second on a GPU (`speed/accelerator.py`)": accelerator(),
        "Methods": methods(),
    }
    return TOP + "".join(f"\n## {title}\n\n{body}\n" for title, body in parts.items())


MADE = {
    "gates": gates,
    "accelerator": answers.accelerator,
    "bfloat16": answers.bfloat16,
    "bonuses": answers.bonuses,
    "compiling": answers.compiling,
    "demo": answers.demo,
    "drnd": answers.drnd,
    "extras": answers.extras,
    "floor": answers.floor,
    "lever": answers.lever,
    "reached": answers.reached,
}


def filled(text: str) -> str:
    """The text with today's figures between its marks, `<!-- made: gates CartPole-v1 -->`; what is
    behind the name are arguments, separated by commas.
    """

    def made(found: re.Match) -> str:
        mark, name, arguments, line = found.groups()
        said = MADE[name](*filter(None, arguments.split(", ")))
        if line is None:  # within a line
            return f"{mark}{said}<!-- end -->"
        if not said.startswith("|"):
            said = textwrap.fill(said, 100 - len(line), break_on_hyphens=False)
        return f"{mark}\n{textwrap.indent(said, line)}\n{line}<!-- end -->"

    return PAIR.sub(made, text)


def texts() -> dict[Path, str]:
    """Every file that holds figures, as it should be."""
    kept = (HERE.parent / "README.md", HERE / "NOTES.md")
    return {file: filled(file.read_text()) for file in kept} | {HERE / "README.md": text()}


if __name__ == "__main__":
    for file, wanted in texts().items():
        file.write_text(wanted)
