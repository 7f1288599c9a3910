"""Seconds until the first step: tracing and compiling, from nothing and from the cache on disk.

    python benchmarks/speed/compile.py                       # a table; or names of environments

Each program is the experiment of the README, teacher, student and evaluation in one jit over 4
seeds with the preset's sizes, compiled in a fresh process: without a cache, filling one
(`jaxkd.compile_cache`), and from it. Importing is apart. The budget (V4): at most BUDGET seconds
from nothing and CACHED from the cache, on two cores. Writes results/speed/compile.json and .png.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Named, __doc__, __file__)

import json
import subprocess
import sys
import tempfile
from functools import partial
from typing import NamedTuple

import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from benchmarks import protocol

GAMES = (
    "CartPole-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "Pendulum-v1",
    "Catch-bsuite",
    "Breakout-MinAtar",
    "Asterix-MinAtar",
)
BUDGET, CACHED = 12.0, 3.0
CHILD = """
import json, sys, time
began = time.perf_counter()
import jax, jaxkd
from jaxkd import presets
name, folder, size = sys.argv[1:]
if folder: jaxkd.compile_cache(folder)
size = json.loads(size)
p = presets.preset(name)._replace(**size["preset"])
env = presets.make_env(name, p)
teacher = presets.teacher_network(env, p)
student = jaxkd.networks.mlp(env, (44,))
ppo, updates = presets.teaching(env, teacher, p)
kl = {"kl": jaxkd.losses.forward_kl()}
kd = jaxkd.distill(env, student, teacher, losses=kl, unroll_length=p.unroll_length)
def experiment(key):
    k_teacher, k_student, k_score = jax.random.split(key, 3)
    expert, _ = jaxkd.run(ppo, k_teacher, updates)
    pupil, metrics = jaxkd.run(kd, k_student, size["updates"], expert.params)
    score = jaxkd.evaluate(env, student, pupil.params, k_score, num_episodes=size["episodes"])
    return metrics, score.returns.mean()
keys = jax.block_until_ready(jaxkd.seeds(0, size["seeds"]))
start = time.perf_counter()
lowered = jax.jit(jax.vmap(experiment)).lower(keys)
traced = time.perf_counter()
lowered.compile()
ended = time.perf_counter()
print(json.dumps({"import": start - began, "trace": traced - start, "compile": ended - traced}))
"""


class Sizes(NamedTuple):
    """What a smaller run has less of."""

    games: tuple[str, ...] = GAMES
    seeds: int = 4
    updates: int = 100
    episodes: int = 64
    preset: dict = {}


SIZES = {
    "full": Sizes(),
    "cpu": Sizes(games=GAMES[:4]),
    "tiny": Sizes(("CartPole-v1",), 1, 1, 2, protocol.TINY_PRESET),
}


def seconds(name: str, folder: str, size: Sizes) -> dict[str, float]:
    """Of one fresh process."""
    made = subprocess.run(
        [sys.executable, "-c", CHILD, name, folder, json.dumps(size._asdict())],
        capture_output=True,
        text=True,
    )
    if made.returncode:
        raise SystemExit(f"{name}: {made.stderr[-2000:]}")
    return json.loads(made.stdout.splitlines()[-1])


def row(name: str, size: Sizes) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        return {
            "nothing": seconds(name, "", size),
            "filling": seconds(name, folder, size),
            "cached": seconds(name, folder, size),
        }


def total(found: dict[str, float]) -> float:
    return found["trace"] + found["compile"]


def gate(rows: dict) -> list[str]:
    """What does not hold; empty: passed."""
    failed = []
    for name, found in rows.items():
        for how, most in (("nothing", BUDGET), ("cached", CACHED)):
            if total(found[how]) > most:
                failed.append(
                    f"{name}: {total(found[how]):.1f} s from {how}, at most {most:.0f} wanted"
                )
    return failed


def draw(rows: dict):
    figure, axis = plt.subplots(figsize=(1.5 + 1.1 * len(rows), 3.6), layout="constrained")
    for shift, how, colour in ((-0.2, "nothing", "tab:red"), (0.2, "cached", "tab:green")):
        places = [i + shift for i in range(len(rows))]
        axis.bar(places, [r[how]["trace"] for r in rows.values()], 0.38, color=colour, alpha=0.4)
        below = [r[how]["trace"] for r in rows.values()]
        axis.bar(
            places,
            [r[how]["compile"] for r in rows.values()],
            0.38,
            bottom=below,
            color=colour,
            label=f"{how}: trace (pale), compile",
        )
    axis.axhline(BUDGET, color="tab:red", ls=":", lw=0.8)
    axis.axhline(CACHED, color="tab:green", ls=":", lw=0.8)
    axis.set(ylabel="seconds", xticks=range(len(rows)))
    axis.set_xticklabels([name.split("-")[0] for name in rows], fontsize=8)
    axis.legend(fontsize=7)
    return figure


def main(given: frame.Named) -> int:
    size = frame.sized(given, SIZES)
    names = frame.chosen(given.names, size.games)
    runs = {name: partial(row, name, size) for name in names}
    rows, _ = protocol.arms("compile", runs, lambda _: size)
    table = Table("program", "trace", "compile", "from the cache: trace", "load", "import")
    for name, found in rows.items():
        fresh, cached = found["nothing"], found["cached"]
        spent = fresh["trace"], fresh["compile"], cached["trace"], cached["compile"]
        table.add_row(name, *(f"{x:.1f}" for x in (*spent, fresh["import"])))
    Console(width=100).print(table)
    failed = gate(rows)
    if set(rows) == set(size.games):
        protocol.write("compile", {"rows": rows, "failed": failed}, draw(rows))
        protocol.forget("compile")
    return protocol.verdict(failed)


if __name__ == "__main__":
    sys.exit(main(GIVEN))
