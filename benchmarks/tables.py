"""Writes benchmarks/README.md: what every script asks, and the figures of the committed JSON files.

    python benchmarks/tables.py

tests/test_results.py compares the file with what this makes of the JSON files today.
"""

import ast
import json
from pathlib import Path

HERE = Path(__file__).parent
TOP = """# What the scripts found

Made by `benchmarks/tables.py` from `results/`; edits are lost. How to run one: `python
benchmarks/studies/gates.py --help` from the checkout's root, with the package installed as editable
(`make` does that) or `PYTHONPATH=.`; results go to runs/benchmarks/, `--commit` writes `results/`.
What was tried and not kept is in NOTES.md, the accelerator's instructions in speed/accelerator.md.
"""


def read(name: str) -> dict:
    """One committed file, "studies/partial"."""
    return json.loads((HERE / "results" / f"{name}.json").read_text())


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


def gates() -> str:
    """Every environment's teacher, students and controls."""
    rows = []
    for file in sorted((HERE / "results/studies/gates").glob("*.json")):
        found = json.loads(file.read_text())
        student, control = found["student"], found["control"]
        mean = f"{student['mean']:.1f} ({student['worst']:.1f})"
        teacher = f"{found['the_teacher']['return']:.1f}"
        rows.append((file.stem, teacher, mean, f"{control['mean']:.1f}", len(student["seeds"])))
    heads = ("environment", "the teacher", "students, mean (worst)", "without a teacher", "seeds")
    return table(heads, rows)


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
    """All of README.md."""
    parts = {
        "Studies": scripts("studies"),
        "Speed": scripts("speed"),
        "Teachers and students (`studies/gates.py`)": gates(),
        "Exploration (`studies/exploration.py`)": exploration(),
        "Beside other libraries, two CPU cores (`speed/peers.py`)": peers(),
        "Steps a second, two CPU cores (`speed/throughput.py`)": throughput(),
        "Steps a second on a GPU (`speed/accelerator.py`)": accelerator(),
    }
    return TOP + "".join(f"\n## {title}\n\n{body}\n" for title, body in parts.items())


if __name__ == "__main__":
    (HERE / "README.md").write_text(text())
