"""What happens inside: kernels of an update, memory, compiling; rows in a process of their own."""

import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from programs import (
    COMPILE_SECONDS,
    SAMPLE,
    SIZES,
    Entries,
    Program,
    Size,
    T,
    build,
    networks,
    side_by_side,
    timed,
    work,
)

SCRIPT = Path(__file__).parent / "accelerator.py"

# A child runs beside this process, which holds most of the device's memory.
SHARED_MEMORY = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def memory(size: Size) -> Entries:
    """`memory_needed` against the allocator, in a process whose peak nothing has raised before."""
    yield from in_a_child("peaks", size)


def peaks(size: Size) -> Entries:
    """The programs of the row "memory", from small to large; a peak counts only where it rises."""
    import jax

    import jaxkd

    stats = lambda: jax.devices()[0].memory_stats() or {}
    for kind, game, envs in (
        ("ppo", "CartPole-v1", size.envs[-1]),
        ("distillation", "Breakout-MinAtar", size.envs[1]),
        ("ppo", "Breakout-MinAtar", size.envs[1]),
    ):
        algorithm, inputs = work(kind, game, envs)
        needed = jaxkd.memory_needed(algorithm, jax.random.key(0), 2, *inputs)
        before = stats()
        jax.block_until_ready(jaxkd.run(algorithm, jax.random.key(0), 2, *inputs))
        after = stats()
        entry = {"what": f"{kind}, {game}, {envs} environments", "memory_needed": needed}
        if "peak_bytes_in_use" not in after:
            yield entry | {"skipped": "this device's allocator does not tell"}
            continue
        rose = after["peak_bytes_in_use"] > before["peak_bytes_in_use"]
        took = after["peak_bytes_in_use"] - before["bytes_in_use"]
        yield entry | {"took": took, "share": took / needed if rose else None, "peak_rose": rose}


def profile(size: Size) -> Entries:
    """Kernels and microseconds of one update; the scan's share by rollouts of T and 2 T steps."""
    import jax
    import optax

    import jaxkd

    def source(kind, game, length):
        env = jaxkd.envs.make(game, size.sample)
        teacher, student = networks(env)
        if kind == "ppo":
            return build(jaxkd.ppo(env, teacher, unroll_length=length), size.sample, 1, updates=1)
        losses, inputs = (
            {"kl": jaxkd.losses.forward_kl()},
            (jax.jit(teacher.init)(jax.random.key(1)),),
        )
        kd = jaxkd.distill(
            env, student, teacher, losses=losses, optimizer=optax.adam(1e-3), unroll_length=length
        )
        return build(kd, size.sample, 1, inputs, updates=1)

    points = [(*work, length) for work in SAMPLE for length in (T, 2 * T)]
    sources = {point: lambda point=point: source(*point) for point in points}
    programs: dict = side_by_side(sources, time.perf_counter() + COMPILE_SECONDS)
    for kind, game in SAMPLE:
        counts = {}
        for length in (T, 2 * T):
            seconds, program = timed(programs[kind, game, length], 0.1)
            counts[length] = kernels(program) | {"wall": 1e6 * seconds}
        first, second = counts[T], counts[2 * T]
        per_step = {
            key: (second[key] - first[key]) / T for key in ("kernels", "microseconds", "wall")
        }
        yield {
            "what": f"{kind}, {game}, {size.sample} environments",
            "kernels_an_update": first["kernels"],
            "busy_microseconds_an_update": first["microseconds"],
            "wall_microseconds_an_update": first["wall"],
            "kernels_a_step": per_step["kernels"],
            "busy_microseconds_a_step": per_step["microseconds"],
            "wall_microseconds_a_step": per_step["wall"],
            "most": first["most"],
        }


def kernels(program: Program, calls: int = 3) -> dict[str, Any]:
    """What the device ran in one chunk.

    {"kernels", "microseconds", "most": [[name, times, microseconds], ...]}.
    """
    import jax

    with tempfile.TemporaryDirectory() as folder:
        state = program.state
        with jax.profiler.trace(folder):
            for _ in range(calls):
                state = program.step(state, *program.inputs)
            jax.block_until_ready(state)
        rows = list(device_events(Path(folder)))
    by_name: dict[str, list[float]] = {}
    for name, microseconds in rows:
        by_name.setdefault(name, []).append(microseconds)
    most = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:12]
    return {
        "kernels": len(rows) / calls,
        "microseconds": sum(microseconds for _, microseconds in rows) / calls,
        "most": [[name, len(spent) / calls, sum(spent) / calls] for name, spent in most],
    }


def device_events(folder: Path) -> Iterator[tuple[str, float]]:
    """(name, microseconds) of what ran on the device's streams; none on a CPU."""
    for file in folder.rglob("*.trace.json.gz"):
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
        planes = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
        threads = {
            (e["pid"], e["tid"]): e["args"]["name"]
            for e in events
            if e.get("name") == "thread_name"
        }
        for e in events:
            on_device = "/device:GPU" in planes.get(e.get("pid"), "") and "Stream" in threads.get(
                (e.get("pid"), e.get("tid")), ""
            )
            if e.get("ph") == "X" and on_device:
                yield e["name"], float(e.get("dur", 0))


def compiling(size: Size) -> Entries:
    """Seconds from the start of a process to its first update: uncached, then from the cache."""
    with tempfile.TemporaryDirectory() as folder:
        for cached in (False, True):
            given = os.environ | {
                "JAX_COMPILATION_CACHE_DIR": folder,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
            }
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, str(SCRIPT), "--first-update"],
                env=given | SHARED_MEMORY,
                capture_output=True,
                text=True,
            )
            whole = time.perf_counter() - began
            if done.returncode:
                yield {"cached": cached, "skipped": done.stderr[-300:]}
                return
            yield {"cached": cached, "process_seconds": whole} | json.loads(
                done.stdout.splitlines()[-1]
            )


def in_a_child(row: str, size: Size, **environment: str) -> Entries:
    """The entries of a row that runs in a process of its own, of at most a minute."""
    with tempfile.TemporaryDirectory() as folder:
        label = next(name for name, value in SIZES.items() if value is size)
        command = [sys.executable, str(SCRIPT), "--rows", row, "--size", label, "--out", folder]
        done = subprocess.run(
            command, env=os.environ | SHARED_MEMORY | environment, capture_output=True, text=True
        )
        written = list(Path(folder).rglob("accelerator.json"))
        entries = json.loads(written[0].read_text())["rows"][row]["entries"] if written else []
    yield from entries or [{"skipped": (done.stderr or done.stdout)[-400:]}]


def print_first_update() -> None:
    """What a fresh process needs to its first update of a distillation, stage by stage."""
    began = time.perf_counter()
    import jax

    import jaxkd

    jaxkd.envs.make("CartPole-v1", 1024)
    imported = time.perf_counter()
    algorithm, inputs = work("distillation", "CartPole-v1", 1024)
    jax.block_until_ready(inputs)
    assembled = time.perf_counter()
    jax.block_until_ready(jaxkd.run(algorithm, jax.random.key(0), 4, *inputs))
    done = time.perf_counter()
    print(
        json.dumps(
            {
                "importing": imported - began,
                "assembling": assembled - imported,
                "compiling_and_first_update": done - assembled,
            }
        )
    )
