"""This library on one accelerator: is it right there, how fast is it, what would make it faster.

    python benchmarks/speed/accelerator.py [--rows device correct ...] [--size tiny|full]
        [--out FILE] [--minutes 8] [--draw FILE]

Rows run in the order of `all_rows()`, the most important first. Every figure is written as soon as it
is measured: a cut leaves what there was. A row that fails says why and the next one runs; one that
has used up its minute leaves out the rest of its points.

All programs are the configuration of throughput.py: 32 steps an update, PPO 4 epochs x 4
minibatches, distillation 1 x 4, the student acts; teacher 64-64 and student 44 (MinAtar's network,
and 1/15 of it, for its games). Steps per second are environment steps of all seeds; a point is the
median of three rounds of about half a second, after one that warms up. The programs of a row are
compiled side by side before any of them runs; their compile seconds stand beside them, and row
"compiling" has a program's own. accelerator.md tells how to run it on a machine without a network,
and how to read what it wrote.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent
RESULT = HERE.parent / "results" / "speed" / "accelerator.json"
ASIDE = ("levers-distil", "levers-ppo", "levers-Breakout", "flags", "rejax", "sample", "peaks")


def all_rows() -> dict[str, Callable]:
    """Every row by name; those in `ASIDE` run only where they are named."""
    import accelerator_correct as correct
    import accelerator_inside as inside
    import accelerator_levers as levers
    import accelerator_rows as speed

    return {
        "device": speed.device,
        "correct": correct.correct,
        "distil-CartPole": speed.grid("distillation", "CartPole-v1"),
        "ppo-CartPole": speed.grid("ppo", "CartPole-v1"),
        "distil-Breakout": speed.grid("distillation", "Breakout-MinAtar"),
        "seeds": speed.seeds,
        "profile": inside.profile,
        "ppo-Breakout": speed.grid("ppo", "Breakout-MinAtar"),
        "distil-Asterix": speed.grid("distillation", "Asterix-MinAtar"),
        "added": speed.added,
        "compiling": inside.compiling,
        "raw": speed.raw,
        "ppo-Asterix": speed.grid("ppo", "Asterix-MinAtar"),
        "memory": inside.memory,
        "levers-distil": levers.levers("distillation", "CartPole-v1"),
        "levers-ppo": levers.levers("ppo", "CartPole-v1"),
        "levers-Breakout": levers.levers("distillation", "Breakout-MinAtar"),
        "flags": levers.flags,
        "rejax": levers.rejax,
        "sample": levers.sample,
        "peaks": inside.peaks,
    }


def write(out: Path, result: dict) -> None:
    """As one whole: a cut leaves the file before it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    text = json.dumps(result, default=float)
    rounded = json.loads(text, parse_float=lambda x: float(f"{float(x):.5g}"))
    part.write_text(json.dumps(rounded, indent=1) + "\n")
    part.replace(out)


def made() -> dict[str, Any]:
    """The machine and what runs on it."""
    import jax

    from jaxkd.cli.summary import versions

    card, cores = jax.devices()[0], len(os.sched_getaffinity(0))
    machine = {"device": card.device_kind, "platform": card.platform, "cores": cores}
    return machine | {"date": str(date.today()), "versions": versions()}


def run_rows(chosen: dict[str, Callable], size: Any, out: Path, minutes: float) -> dict:
    """Each row's figures into the file as they come; a row that fails is a row that says so."""
    began = time.perf_counter()
    result: dict = json.loads(out.read_text()) if out.exists() else {"made": made(), "rows": {}}
    for name, measure in chosen.items():
        if time.perf_counter() - began > 60 * minutes:
            print(f"{name}: left out, {minutes:g} minutes are over", flush=True)
            continue
        row: dict = {"seconds": 0.0, "entries": []}
        result["rows"][name], start = row, time.perf_counter()
        try:
            for entry in measure(size):
                row["entries"].append(entry)
                row["seconds"] = time.perf_counter() - start
                print(f"{name}: {json.dumps(entry, default=float)[:240]}", flush=True)
                write(out, result)
        except Exception as error:  # the rows behind it are worth their minutes
            row["error"] = f"{type(error).__name__}: {str(error)[:500]}"
            print(f"{name}: {row['error']}", flush=True)
        row["seconds"] = time.perf_counter() - start
        print(f"{name}: {row['seconds']:.1f} s", flush=True)
        write(out, result)
    return result


def picture(result: dict, file: Path) -> None:
    """Steps per second by environments x seeds, a panel a row, a line a number of seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in result["rows"] if name.startswith(("distil-", "ppo-"))]
    size = (4.2 * len(names), 3.8)
    figure, axes = plt.subplots(1, len(names), figsize=size, squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        points = [e for e in result["rows"][name]["entries"] if "steps_per_second" in e]
        for seeds in sorted({point["seeds"] for point in points}):
            line = [point for point in points if point["seeds"] == seeds]
            lanes = [point["num_envs"] * seeds for point in line]
            rates = [point["steps_per_second"] for point in line]
            axis.loglog(lanes, rates, "o-", label=f"{seeds} seed{'s' * (seeds > 1)}")
        axis.set(title=name, xlabel="environments x seeds", ylabel="environment steps per second")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=7)
    facts = result["made"]
    figure.suptitle(f"{facts['device']}, jax {facts['versions']['jax']}, {facts['date']}")
    figure.savefig(file, dpi=90)


def table(result: dict) -> None:
    """Every row as a table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for name, row in result["rows"].items():
        entries = [{k: v for k, v in e.items() if k != "most"} for e in row["entries"]]
        columns = list(dict.fromkeys(key for entry in entries for key in entry))
        printed = Table(*columns, title=f"{name}, {row['seconds']:.0f} s {row.get('error', '')}")
        for entry in entries:
            cells = [entry.get(column, "") for column in columns]
            printed.add_row(*[f"{x:,.4g}" if isinstance(x, float) else str(x) for x in cells])
        console.print(printed)


def main(
    rows: tuple[str, ...] = (),
    size: Literal["tiny", "full"] = "full",
    out: Path = Path("runs/accelerator.json"),
    minutes: float = 8.0,
    draw: Path | None = None,
    first_update: bool = False,
    write_reference: bool = False,
) -> None:
    """Measures this library on this machine's accelerator, row by row.

    Args:
        rows: which, by name; default all but levers, flags and their like.
        size: of the points; tiny is for seeing that it runs.
        out: the JSON that is written, or gone on with.
        minutes: after which no further row begins.
        draw: a JSON to print as tables and to draw beside itself; nothing is measured.
        first_update: prints what a fresh process needs to its first update, and ends.
        write_reference: makes the committed numbers of row "correct" anew, on a CPU, and ends.
    """
    known = all_rows()
    if draw is not None:
        result = json.loads(draw.read_text())
        table(result)
        return picture(result, draw.with_suffix(".png"))
    if first_update:
        return sys.modules["accelerator_inside"].print_first_update()
    if write_reference:
        return sys.modules["accelerator_correct"].make_reference()
    unknown = set(rows) - set(known)
    if unknown:
        sys.exit(f"error: unknown rows {', '.join(sorted(unknown))}. There are: {', '.join(known)}.")
    from programs import SIZES

    chosen = rows or tuple(name for name in known if name not in ASIDE)
    run_rows({name: known[name] for name in chosen}, SIZES[size], out, minutes)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
