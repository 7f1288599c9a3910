"""Steps per second and memory against environments, seeds, virtual devices and processes; each
point in a fresh process.

    python benchmarks/speed/scaling.py

CartPole, PPO and distillation at the configuration of throughput.py (32 steps an update), after one
warm-up the median of five runs of about a second. Memory: how far the process grows while a run
goes on, beyond what it holds before and after (its code and the compiler's leavings), beside
`jaxkd.memory_needed`, which is known before it runs; "in all" is the peak of the whole process,
with compiling. Linux alone tells these. Devices are virtual and share this machine's cores, so
their column shows what dividing and communicating costs, not what devices gain; so are two
processes (gloo on one machine). communicated: bytes that all collectives of one update return on
one device, from the compiled program. Writes results/speed/scaling.json and .png.
"""

import ctypes
import gc
import json
import re
import socket
import statistics
import subprocess
import sys
import time
from functools import partial
from math import prod
from pathlib import Path
from typing import NamedTuple

from benchmarks import frame

T = {"ppo": 32, "distillation": 32, "breakout": 128}
EPOCHS = {"ppo": 4, "distillation": 1, "breakout": 4}
BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "bf16": 2}


class Sizes(NamedTuple):
    """What a smaller run has less of."""

    works: tuple[str, ...] = ("ppo", "distillation")
    envs: tuple[int, ...] = (64, 256, 1024, 4096, 16384)
    seeds: tuple[int, ...] = (1, 4, 16, 64)
    devices: tuple[int, ...] = (1, 2, 4, 8)
    processes: tuple[int, ...] = (1, 2)
    spread: int = 2048  # environments that are spread over devices and processes
    breakout: int = 2048  # environments; 0: left out
    rows: int = 400_000  # environment steps of a run, about a second
    rounds: int = 5


SIZES = {
    "full": Sizes(),
    "cpu": Sizes(envs=(64, 1024), seeds=(1, 16), devices=(1, 2), breakout=0),
    "tiny": Sizes(("ppo",), (4,), (1,), (2,), (1,), 4, 0, 1, 1),
}


def program(work: str, num_envs: int, num_seeds: int, devices: int) -> tuple:
    """(algorithm, keys, inputs)."""
    import jax
    import optax

    import jaxkd
    from jaxkd import losses, sharding

    keys = jaxkd.seeds(0, num_seeds)
    if work == "breakout":
        env = jaxkd.envs.make("Breakout-MinAtar", num_envs)
        return jaxkd.ppo(env, jaxkd.networks.cnn(env), unroll_length=T[work]), keys[0], ()
    env = jaxkd.envs.make("CartPole-v1", num_envs)
    big, small = jaxkd.networks.mlp(env, (64, 64), separate=True), jaxkd.networks.mlp(env, (44,))
    if work == "ppo":
        algorithm, inputs = jaxkd.ppo(env, big, unroll_length=T[work], learning_rate=2.5e-4), ()
    else:
        algorithm = jaxkd.distill(
            env,
            small,
            big,
            losses={"kl": losses.forward_kl()},
            unroll_length=T[work],
            optimizer=optax.adam(1e-3),
        )
        inputs = (big.init(jax.random.key(1)),)
    algorithm, keys = (jaxkd.lanes(algorithm), keys) if num_seeds > 1 else (algorithm, keys[0])
    if devices > 1:
        algorithm = sharding.shard(algorithm, sharding.mesh(envs=devices))
    return algorithm, keys, inputs


def memory(name: str) -> int:
    """Bytes of this process: VmRSS, what it holds; VmHWM, the most it has held."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def grown(run) -> int:
    """Bytes that the process holds at most while `run` goes on, beyond what it holds before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(
        0
    )  # what was freed goes back to the system, or it would hide growth
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    before = memory("VmRSS")
    run()
    return memory("VmHWM") - before


def communicated(algorithm, keys, inputs, repeats: int) -> int:
    """Bytes that the collectives of one update return; those inside the loop over minibatches count
    `repeats` times, others once.
    """
    import jax

    text = (
        jax.jit(algorithm.step)
        .lower(jax.eval_shape(algorithm.init, keys), *inputs)
        .compile()
        .as_text()
    )
    total = 0
    for line in text.splitlines():
        made = re.match(
            r".*= (.*?) (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)"
            r"(?:-start)?\(",
            line,
        )
        if made:
            size = sum(
                BYTES[kind] * prod(int(n) for n in shape.split(",") if n)
                for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", made[1])
            )
            total += size * (repeats if line.count("while/body") > 1 else 1)
    return total


def child(
    work: str,
    num_envs: int,
    num_seeds: int,
    devices: int,
    processes: int,
    rows: int,
    rounds: int,
    index: int,
    port: int,
) -> None:
    """Prints the figures of one point."""
    import jax

    if processes > 1:
        jax.distributed.initialize(f"localhost:{port}", processes, index)
    elif devices > 1:
        jax.config.update("jax_num_cpu_devices", devices)
    import jaxkd

    algorithm, keys, inputs = program(work, num_envs, num_seeds, devices * processes)
    updates = max(2, rows // (T[work] * num_envs * num_seeds))
    expected = jaxkd.memory_needed(algorithm, keys, updates, *inputs)
    run = lambda: jax.block_until_ready(jaxkd.run(algorithm, keys, updates, *inputs))
    run()
    in_all, used = memory("VmHWM"), grown(run)
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    steps, divided = T[work] * num_envs * num_seeds * updates, devices * processes > 1
    repeats = EPOCHS[work] * 4  # of a collective inside the loop over minibatches
    figures = {
        "steps_per_second": steps / statistics.median(seconds),
        "memory_needed": expected,
        "memory_used": used,
        "memory_in_all": in_all,
        "updates": updates,
        "communicated": communicated(algorithm, keys, inputs, repeats) if divided else 0,
    }
    print(json.dumps(figures))


def point(
    size: Sizes, work: str, num_envs: int, num_seeds: int = 1, devices: int = 1, processes: int = 1
) -> dict:
    """One point's figures, from as many processes as it has."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        __file__,
        "--child",
        work,
        *map(str, (num_envs, num_seeds, devices, processes, size.rows, size.rounds)),
    ]
    running = [
        subprocess.Popen([*command, str(i), str(port)], stdout=subprocess.PIPE, text=True)
        for i in range(processes)
    ]
    told = [process.communicate()[0] for process in running]
    return json.loads(told[0].splitlines()[-1]) | {
        "work": work,
        "num_envs": num_envs,
        "seeds": num_seeds,
        "devices": devices,
        "processes": processes,
    }


def show(rows: list[dict]) -> None:
    """The table; megabytes are of the run alone, expected and found."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "work",
        "envs",
        "seeds",
        "devices",
        "processes",
        "steps/s",
        "MB expected",
        "MB found",
        "MB communicated",
    )
    for r in rows:
        sizes = [str(r[name]) for name in ("num_envs", "seeds", "devices", "processes")]
        megabytes = [
            f"{r[name] / 1e6:,.1f}" for name in ("memory_needed", "memory_used", "communicated")
        ]
        table.add_row(r["work"], *sizes, f"{r['steps_per_second'] / 1e3:,.0f}k", *megabytes)
    Console(width=120).print(table)


def draw(rows: list[dict], size: Sizes):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(13, 3.4), layout="constrained")
    for axis, (what, chosen) in zip(axes, groups(rows, size).items(), strict=True):
        for work in size.works:
            mine = sorted((row for row in chosen if row["work"] == work), key=lambda row: row[what])
            x = [row[what] for row in mine]
            axis.plot(x, [row["steps_per_second"] for row in mine], marker="o", label=work)
        axis.set(xlabel=what, ylabel="steps per second", xscale="log", yscale="log", xticks=x)
        axis.set_xticklabels(x, fontsize=7)
        axis.minorticks_off()
    axes[0].legend(fontsize=7)
    return figure


def groups(rows: list[dict], size: Sizes) -> dict[str, list[dict]]:
    """The rows of each picture."""
    alone = lambda row: row["devices"] == row["processes"] == 1
    return {
        "num_envs": [row for row in rows if alone(row) and row["seeds"] == 1],
        "seeds": [row for row in rows if alone(row) and row["num_envs"] == size.envs[0]],
        "devices": [
            row for row in rows if row["processes"] == 1 and row["num_envs"] == size.spread
        ],
        "processes": [
            row for row in rows if row["devices"] == 1 and row["num_envs"] == size.spread
        ],
    }


def points(size: Sizes) -> list[dict]:
    """Keywords of `point`."""
    found = [dict(num_envs=n) for n in size.envs]
    found += [dict(num_envs=size.envs[0], num_seeds=n) for n in size.seeds[1:]]
    found += [dict(num_envs=size.spread, devices=n) for n in size.devices]
    return found + [dict(num_envs=size.spread, processes=n) for n in size.processes[1:]]


def main(given: frame.Given) -> None:
    from benchmarks import protocol

    size = frame.sized(given, SIZES)
    all_points = [(work, sizes) for work in size.works for sizes in points(size)]
    if size.breakout:
        all_points.append(("breakout", dict(num_envs=size.breakout)))
    runs = {
        ", ".join([work, *(f"{n} {what}" for what, n in sizes.items())]): partial(
            point, size, work, **sizes
        )
        for work, sizes in all_points
    }
    say = lambda found: f"{found['steps_per_second'] / 1e3:,.0f}k steps/s"
    found, _ = protocol.arms("scaling", runs, lambda _: size, say)
    rows = list(found.values())
    show(rows)
    print(f"in all {rows[-1]['memory_in_all'] / 2**30:.2f} GiB: {list(found)[-1]}")
    protocol.write("scaling", {"unroll_length": T, "rows": rows}, draw(rows, size))
    protocol.forget("scaling")


if __name__ == "__main__":
    if "--child" in sys.argv:
        name, *numbers = sys.argv[2:]
        child(name, *map(int, numbers))
    else:
        main(frame.start(frame.Given, __doc__, __file__))
