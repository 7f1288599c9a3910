"""Environment steps per second beside other libraries, each in its own virtual environment, in
turns with ours on this machine's processor.

    python benchmarks/speed/peers.py [rejax] [sb3] [rsl_rl]     # default all
    python benchmarks/speed/peers.py [names] --verify           # does each of them learn?

At a smaller size (`make extras` takes tiny: one short round) a peer that cannot be installed here
is told and left out.

Configuration (`peers/child.py`): 64 environments x 32 steps an update; PPO in CartPole, 4 epochs x
4 minibatches, MLP 64-64 tanh, a critic apart, Adam 2.5e-4; distillation 1 epoch x 4 minibatches,
teacher 64-64, student 44, the student acts, Adam 1e-3: forward KL in CartPole, squared error of the
mean in Pendulum. "reset pool" is our `envs.make(..., reset_pool=8)`, which like the peers draws
beginnings only where episodes end. The environments are built with pip on first use, in
~/.cache/jaxkd-peers or $JAXKD_PEERS, with the JAX of this interpreter. Ours and theirs are two
processes that live through the rounds and measure in turns, after one measurement that is not told;
compiling is apart. ratio = median of ours / median of theirs, of 5 rounds. Each child's first lines
say how its library is configured. Writes results/speed/peers.json and .png, with --verify
results/speed/peers_verified.json.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Peers, __doc__, __file__)

import json
import os
import shutil
import statistics
import subprocess
import sys
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from benchmarks import protocol

ROUNDS = 5
FOLDER = Path(os.environ.get("JAXKD_PEERS", Path.home() / ".cache" / "jaxkd-peers"))
CHILDREN = Path(__file__).parent / "peers"
PINS = {
    "rejax": [
        "rejax==0.1.3",
        "gymnax==0.0.9",
        *(f"{name}=={metadata.version(name)}" for name in ("jax", "jaxlib", "flax", "optax")),
    ],
    "sb3": ["stable-baselines3==2.9.2", "gymnasium==1.4.0", "torch==2.13.0"],
    "rsl_rl": ["rsl-rl-lib==5.5.1", "tensordict==0.15.3", "torch==2.13.0"],
}


class Pair(NamedTuple):
    """What ours and a peer do; updates of one measurement are a few seconds on two cores."""

    what: str
    peer: str
    ours: str  # the work's name in with_jaxkd.py
    our_updates: int
    theirs: str  # and in with_<peer>.py
    their_updates: int
    goal: float | None = None  # of the ratio


PAIRS = {
    "rejax": Pair("PPO, CartPole", "rejax", "ppo", 400, "ppo", 300, goal=1.3),
    "rejax, full shuffle": Pair(
        "PPO, CartPole, ours fully shuffled too", "rejax", "ppo-full-shuffle", 300, "ppo", 300
    ),
    "sb3": Pair("PPO, CartPole", "sb3", "ppo", 400, "ppo", 48),
    "sb3, distillation": Pair(
        "distillation, CartPole", "sb3", "distill", 3000, "distill", 96, goal=45
    ),
    "sb3, reset pool": Pair(
        "distillation, CartPole, a reset pool of ours",
        "sb3",
        "distill-reset-pool",
        3000,
        "distill",
        96,
        goal=45,
    ),
    "rsl_rl": Pair("distillation, Pendulum", "rsl_rl", "distill-pendulum", 3000, "distill", 256),
}


class Sizes(NamedTuple):
    """What a smaller run has less of."""

    rounds: int = ROUNDS
    share: int = 1  # so many times fewer updates in a measurement


SIZES = {"full": Sizes(), "cpu": Sizes(rounds=2), "tiny": Sizes(1, 48)}


def interpreter(peer: str) -> Path:
    """The peer's own Python; its environment is built where it is missing or its pins have changed.

    Raises:
        SystemExit: it cannot be built; one line, with the last of what pip says.
    """
    folder, pins = FOLDER / peer, "\n".join(PINS[peer])
    stamp, python = folder / "pins.txt", folder / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != pins:
        print(f"building {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        for command in (
            [sys.executable, "-m", "venv", folder],
            [python, "-m", "pip", "install", "-qq", *PINS[peer]],
        ):
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
            if done.returncode != 0:
                why = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise SystemExit(f"error: {peer} cannot be installed here: {why}")
        stamp.write_text(pins)
    return python


def installed(pairs: dict[str, Pair], go_on: bool) -> set[str]:
    """The peers that are there now; one that cannot be is told, and ends it unless we `go_on`."""
    found = set()
    for peer in dict.fromkeys(pair.peer for pair in pairs.values()):
        try:
            interpreter(peer)
            found.add(peer)
        except SystemExit as error:
            if not go_on:
                raise
            print(error, file=sys.stderr, flush=True)
    return found


def start(python: Path | str, library: str, work: str, mode: int | str) -> subprocess.Popen[str]:
    """A child; what it and its libraries print goes to its log."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    command = [str(python), str(CHILDREN / f"with_{library}.py"), work, str(mode)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    with (FOLDER / f"{library}.log").open("w") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        )


def answer(child: subprocess.Popen[str]) -> dict:
    """The next line of a child."""
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise SystemExit(f"{child.args} ended without an answer: see its log in {FOLDER}")
    return json.loads(line)


def measurement(child: subprocess.Popen[str]) -> float:
    """Environment steps per second of one measurement."""
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
    told = answer(child)
    return told["steps"] / told["seconds"]


def compare(pair: Pair, size: Sizes) -> dict:
    """Both sides' figures, measured in turns, and their ratio."""
    ours, theirs = (n // size.share for n in (pair.our_updates, pair.their_updates))
    sides = {
        "ours": (sys.executable, "jaxkd", pair.ours, ours),
        "theirs": (interpreter(pair.peer), pair.peer, pair.theirs, theirs),
    }
    children, told = {}, {}
    try:
        for (
            side,
            arguments,
        ) in sides.items():  # one after the other: compiling must not be disturbed
            children[side] = start(*arguments)
            told[side] = answer(children[side])
        speeds = [
            {side: measurement(child) for side, child in children.items()}
            for _ in range(size.rounds)
        ]
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    figures = {
        side: told[side]
        | {
            "rounds": [speed[side] for speed in speeds],
            "steps_per_second": statistics.median(s[side] for s in speeds),
        }
        for side in sides
    }
    return {
        "what": pair.what,
        "ratio": figures["ours"]["steps_per_second"] / figures["theirs"]["steps_per_second"],
    } | figures


def verify(pairs: dict[str, Pair]) -> int:
    """Trains each peer once; how many did not learn."""
    table, found = Table("peer", "figures", "learnt"), {}
    for name, pair in pairs.items():
        if (pair.peer, pair.theirs) in {
            (done.peer, done.theirs) for done in map(PAIRS.get, found) if done
        }:
            continue  # the same work, beside another of ours
        child = start(interpreter(pair.peer), pair.peer, pair.theirs, "verify")
        found[name] = answer(child)
        child.wait()
        figures = ", ".join(
            f"{key.replace('_', ' ')} {x:.4g}"
            for key, x in found[name].items()
            if isinstance(x, float)
        )
        table.add_row(f"{name}: {pair.what}", figures, "yes" if found[name]["learnt"] else "NO")
    Console(width=120).print(table)
    protocol.write("peers_verified", {"peers": found})
    return sum(not figures["learnt"] for figures in found.values())


def draw(rows: dict[str, dict]):
    figure, axis = plt.subplots(figsize=(1.5 + 1.7 * len(rows), 3.8), layout="constrained")
    for offset, side, colour in [(-0.2, "ours", "tab:blue"), (0.2, "theirs", "tab:orange")]:
        heights = [row[side]["steps_per_second"] for row in rows.values()]
        axis.bar(
            [place + offset for place in range(len(rows))],
            heights,
            width=0.4,
            color=colour,
            label=side,
        )
    for place, row in enumerate(rows.values()):
        axis.annotate(
            f"{row['ratio']:.1f}x",
            (place - 0.2, row["ours"]["steps_per_second"]),
            ha="center",
            va="bottom",
        )
    axis.set(yscale="log", ylabel="environment steps per second", xticks=range(len(rows)))
    axis.set_xticklabels(
        [f"{name}\n{', '.join(row['what'].split(', ')[:2])}" for name, row in rows.items()],
        fontsize=8,
    )
    axis.margins(y=0.1)
    figure.legend(loc="outside upper right", ncols=2, fontsize=8)
    return figure


def gate(rows: dict[str, dict]) -> list[str]:
    """What does not hold; empty: passed."""
    goals = {
        name: pair.goal for name, pair in PAIRS.items() if pair.goal is not None and name in rows
    }
    return [
        f"{name}: {rows[name]['ratio']:.2f} times, wanted {goal}"
        for name, goal in goals.items()
        if rows[name]["ratio"] < goal
    ]


def main(given: frame.Peers) -> int:
    # What the children run on, and the device that is written down.
    jax.config.update("jax_platforms", "cpu")
    size, names = frame.sized(given, SIZES), frame.chosen(given.names, tuple(PINS))
    pairs = {name: pair for name, pair in PAIRS.items() if pair.peer in names}
    missing = {pair.peer for pair in pairs.values()} - installed(pairs, go_on=size != Sizes())
    pairs = {name: pair for name, pair in pairs.items() if pair.peer not in missing}
    if not pairs:
        return len(missing)
    if given.verify:
        return verify(pairs)
    file = protocol.RESULTS / "speed" / "peers.json"
    partly = given.names and file.exists() and given.size == frame.FULL
    rows = json.loads(file.read_text())["rows"] if partly else {}
    runs = {name: partial(compare, pair, size) for name, pair in pairs.items()}
    settings = lambda name: [PAIRS[name], PINS[PAIRS[name].peer], size]
    say = lambda row: f"{row['ratio']:.2f} times"
    found, _ = protocol.arms("peers", runs, settings, say)
    rows |= found
    table = Table(
        "peer", "what", "ours, steps/s", "theirs, steps/s", "ratio", "compile s (ours, theirs)"
    )
    for name, row in found.items():
        speeds = [f"{row[side]['steps_per_second'] / 1e3:,.1f}k" for side in ("ours", "theirs")]
        compiling = ", ".join(f"{row[side]['compile_seconds']:.1f}" for side in ("ours", "theirs"))
        table.add_row(name, row["what"], *speeds, f"{row['ratio']:.2f}", compiling)
    Console(width=120).print(table)
    failed = gate(rows)
    rows = {name: rows[name] for name in PAIRS if name in rows}
    protocol.write("peers", {"rounds": size.rounds, "failed": failed, "rows": rows}, draw(rows))
    protocol.forget("peers")
    return protocol.verdict(failed) + len(missing)


if __name__ == "__main__":
    sys.exit(main(GIVEN))
