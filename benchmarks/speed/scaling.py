"""Steps per second and memory against environments, seeds, virtual devices and processes; each
point in a fresh process.

    python benchmarks/speed/scaling.py [--quick]

CartPole, PPO and distillation at the configuration of throughput.py (32 steps an update), after one
warm-up the median of ROUNDS runs of UPDATES updates. Memory: how far the process grows while a run
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
from math import prod
from pathlib import Path

from benchmarks import frame

ROUNDS = 5
T = {"ppo": 32, "distillation": 32, "breakout": 128}
ENVS, SEEDS, DEVICES, PROCESSES = (64, 256, 1024, 4096, 16384), (1, 4, 16, 64), (1, 2, 4, 8), (1, 2)
SPREAD_ENVS = 2048  # environments that are spread over devices and processes
EPOCHS = {"ppo": 4, "distillation": 1, "breakout": 4}
SIZES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "bf16": 2}


def updates_of(rows: int) -> int:
    """So many that a run takes about a second."""
    return max(2, 400_000 // rows)


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
            r".*= (.*?) (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(",
            line,
        )
        if made:
            size = sum(
                SIZES[kind] * prod(int(n) for n in shape.split(",") if n)
                for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", made[1])
            )
            total += size * (repeats if line.count("while/body") > 1 else 1)
    return total


def child(
    work: str, num_envs: int, num_seeds: int, devices: int, processes: int, index: int, port: int
) -> None:
    """Prints the figures of one point."""
    import jax

    if processes > 1:
        jax.distributed.initialize(f"localhost:{port}", processes, index)
    elif devices > 1:
        jax.config.update("jax_num_cpu_devices", devices)
    import jaxkd

    algorithm, keys, inputs = program(work, num_envs, num_seeds, devices * processes)
    updates = updates_of(T[work] * num_envs * num_seeds)
    expected = jaxkd.memory_needed(algorithm, keys, updates, *inputs)
    run = lambda: jax.block_until_ready(jaxkd.run(algorithm, keys, updates, *inputs))
    run()
    in_all, used = memory("VmHWM"), grown(run)
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    figures = {
        "steps_per_second": T[work] * num_envs * num_seeds * updates / statistics.median(seconds)
    }
    figures |= {
        "memory_needed": expected,
        "memory_used": used,
        "memory_in_all": in_all,
        "updates": updates,
    }
    figures["communicated"] = (
        communicated(algorithm, keys, inputs, EPOCHS[work] * 4) if devices * processes > 1 else 0
    )
    print(json.dumps(figures))


def point(
    work: str, num_envs: int, num_seeds: int = 1, devices: int = 1, processes: int = 1
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
        *map(str, (num_envs, num_seeds, devices, processes)),
    ]
    running = [
        subprocess.Popen([*command, str(i), str(port)], stdout=subprocess.PIPE, text=True)
        for i in range(processes)
    ]
    told = [process.communicate()[0] for process in running]
    found = json.loads(told[0].splitlines()[-1])
    where = f"{num_envs} envs, {num_seeds} seeds, {devices} devices, {processes} processes"
    print(f"{work:12} {where}: {found['steps_per_second'] / 1e3:,.0f}k steps/s", flush=True)
    return found | {
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


def draw(rows: list[dict]):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(13, 3.4), layout="constrained")
    for axis, (what, chosen) in zip(axes, groups(rows).items(), strict=True):
        for work in ("ppo", "distillation"):
            mine = sorted((row for row in chosen if row["work"] == work), key=lambda row: row[what])
            x = [row[what] for row in mine]
            axis.plot(x, [row["steps_per_second"] for row in mine], marker="o", label=work)
        axis.set(xlabel=what, ylabel="steps per second", xscale="log", yscale="log", xticks=x)
        axis.set_xticklabels(x, fontsize=7)
        axis.minorticks_off()
    axes[0].legend(fontsize=7)
    return figure


def groups(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of each picture."""
    alone = lambda row: row["devices"] == row["processes"] == 1
    return {
        "num_envs": [row for row in rows if alone(row) and row["seeds"] == 1],
        "seeds": [row for row in rows if alone(row) and row["num_envs"] == ENVS[0]],
        "devices": [
            row for row in rows if row["processes"] == 1 and row["num_envs"] == SPREAD_ENVS
        ],
        "processes": [
            row for row in rows if row["devices"] == 1 and row["num_envs"] == SPREAD_ENVS
        ],
    }


def main(quick: bool) -> None:
    from benchmarks import protocol

    points = [dict(num_envs=n) for n in ENVS] + [
        dict(num_envs=ENVS[0], num_seeds=n) for n in SEEDS[1:]
    ]
    points += [dict(num_envs=SPREAD_ENVS, devices=n) for n in DEVICES] + [
        dict(num_envs=SPREAD_ENVS, processes=n) for n in PROCESSES[1:]
    ]
    rows = [
        point(work, **sizes)
        for work in ("ppo", "distillation")
        for sizes in (points[:1] if quick else points)
    ]
    rows.append(point("breakout", SPREAD_ENVS))
    show(rows)
    print(
        f"Breakout, {SPREAD_ENVS} environments x {T['breakout']} steps: {rows[-1]['memory_in_all'] / 2**30:.2f} GiB in all"
    )
    if not quick:
        protocol.write("scaling", {"unroll_length": T, "rows": rows}, draw(rows))


if __name__ == "__main__":
    if "--child" in sys.argv:
        name, *numbers = sys.argv[2:]
        child(name, *map(int, numbers))
    else:
        main(frame.start(frame.Quick, __doc__, __file__).quick)
