"""This library on one accelerator: is it right there, how fast is it, what would make it faster.

    python benchmarks/speed/accelerator.py [--rows device correct ...] [--minutes 8] [--draw]

Rows run in the order of `ROWS`, the most important first. Every figure is written as soon as it is
measured: a cut leaves what there was. A row that fails says why and the next one runs; one that has
used up its minute leaves out the rest of its points. The programs of a row are compiled side by
side before any of them runs; their compile seconds stand beside them.
A call goes on with the file that is there, and measures the rows it names again. Writes
results/speed/accelerator.json.
accelerator.md tells how to run it on a machine without a network, and how to read what it wrote.
"""

from benchmarks import frame

if __name__ == "__main__":  # before what it needs is imported: --help answers at once
    GIVEN = frame.start(frame.Accelerator, __doc__, __file__)

import json
import os
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

from accelerator_correct import correct, make_reference
from accelerator_inside import compiling, memory, peaks, print_first_update, profile
from accelerator_levers import flags, levers, rejax, sample
from accelerator_rows import added, device, grid, raw, seeds
from programs import ROW_SECONDS, SIZES, Entries, Size

ROWS: dict[str, Callable[[Size], Entries]] = {
    "device": device,
    "correct": correct,
    "distil-CartPole": grid("distillation", "CartPole-v1"),
    "ppo-CartPole": grid("ppo", "CartPole-v1"),
    "distil-Breakout": grid("distillation", "Breakout-MinAtar"),
    "seeds": seeds,
    "profile": profile,
    "ppo-Breakout": grid("ppo", "Breakout-MinAtar"),
    "distil-Asterix": grid("distillation", "Asterix-MinAtar"),
    "added": added,
    "compiling": compiling,
    "raw": raw,
    "ppo-Asterix": grid("ppo", "Asterix-MinAtar"),
    "memory": memory,
    "levers-distil-CartPole": levers("distillation", "CartPole-v1"),
    "levers-ppo-CartPole": levers("ppo", "CartPole-v1"),
    "levers-distil-Breakout": levers("distillation", "Breakout-MinAtar"),
    "flags": flags,
    "rejax": rejax,
    "sample": sample,
    "peaks": peaks,
}
# Run only where they are named.
ASIDE = {name for name in ROWS if name.startswith("levers")} | {"flags", "rejax", "sample", "peaks"}


def write(out: Path, result: dict) -> None:
    """As one whole: a cut leaves the file before it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    rounded = json.loads(
        json.dumps(result, default=float),
        parse_float=lambda x: float(f"{float(x):.5g}"),
        parse_constant=lambda _: None,  # JSON has no NaN
    )
    part.write_text(json.dumps(rounded, indent=1) + "\n")
    part.replace(out)


def beginning(out: Path) -> dict:
    """The file that is gone on with, or a new one that says where it is made."""
    import jax

    from jaxkd.cli.summary import versions

    if out.exists():
        return json.loads(out.read_text())
    card = jax.devices()[0]
    made = {
        "device": card.device_kind,
        "platform": card.platform,
        "cores": len(os.sched_getaffinity(0)),
        "date": str(date.today()),
        "versions": versions(),
    }
    return {"made": made, "rows": {}}


def run_row(name: str, size: Size, result: dict, out: Path) -> None:
    """One row's figures into the file as they come; a row that fails is a row that says so."""
    row: dict = {"seconds": 0.0, "entries": []}
    result["rows"][name] = row
    start = time.perf_counter()
    try:
        for entry in ROWS[name](size):
            row["entries"].append(entry)
            row["seconds"] = time.perf_counter() - start
            print(f"{name}: {json.dumps(entry, default=float)[:240]}", flush=True)
            write(out, result)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {str(error)[:500]}"
        print(f"{name}: {row['error']}", flush=True)
    row["seconds"] = time.perf_counter() - start
    print(f"{name}: {row['seconds']:.1f} s", flush=True)
    write(out, result)


def run_rows(rows: tuple[str, ...], size: Size, out: Path, minutes: float) -> dict:
    """The rows in turn; none begins of which a whole minute would not fit, but the first."""
    began, result = time.perf_counter(), beginning(out)
    for number, name in enumerate(rows):
        if number and time.perf_counter() - began > 60 * minutes - ROW_SECONDS:
            print(f"{name}: left out, {minutes:g} minutes would be over", flush=True)
            continue
        run_row(name, size, result, out)
    return result


def main(given: frame.Accelerator) -> None:
    """Measures the rows, or does the one other thing that was asked for."""
    out = Path(frame.place().folder) / "accelerator.json"
    if given.first_update:
        return print_first_update()
    if given.write_reference:
        return make_reference()
    if given.draw:
        from accelerator_draw import picture, table

        result = json.loads(out.read_text())
        table(result)
        return picture(result, out.with_suffix(".png"))
    usual = tuple(name for name in ROWS if name not in ASIDE)
    rows = frame.chosen(given.rows, tuple(ROWS)) if given.rows else usual
    run_rows(rows, SIZES[given.size], out, given.minutes)


if __name__ == "__main__":
    main(GIVEN)
