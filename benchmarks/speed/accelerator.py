"""This library on one accelerator: is it right there, how fast is it, and what would make it faster.

    python benchmarks/speed/accelerator.py [--rows device correct ...] [--size tiny|full] [--out FILE] [--minutes 8]

Rows run in the order of `ROWS`, the most important first. Every figure is written as soon as it is measured: a cut leaves what
there was. A row that fails says why and the next one runs; one that has used up its minute leaves out the rest of its points.

All programs are the configuration of throughput.py: 32 steps an update, PPO 4 epochs x 4 minibatches, distillation 1 x 4, the
student acts; teacher 64-64 and student 44 (MinAtar's network, and 1/15 of it, for its games). Steps per second are environment
steps of all seeds; a point is the median of ROUNDS rounds of about half a second, after one that warms up. The programs of a row
are compiled side by side before any of them runs; their compile seconds stand beside them, and "compile" has a program's own.
accelerator.md tells how to run it on a machine without a network, and how to read what it wrote.
"""

import contextlib
import gzip
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

HERE = Path(__file__).parent
REFERENCE = HERE / "accelerator_reference.json"
T, ROUNDS, ROW_SECONDS = 32, 3, 60.0


class Size(NamedTuple):
    """How large the points of a row are."""

    envs: tuple[int, ...]
    seeds: tuple[int, ...]
    most: dict[str, int]  # environments x seeds, by game
    seconds: float  # of a round
    product: int  # side of the square matrices of the ceiling
    sample: int  # environments of a lever's programs
    few: int  # environments of the rows "seeds" and "added"


FULL = Size(
    (1024, 4096, 16384),
    (1, 8, 32, 64),
    {"CartPole-v1": 2**20, "Breakout-MinAtar": 2**16, "Asterix-MinAtar": 2**16},
    0.4,
    8192,
    4096,
    64,
)
TINY = Size((16, 32), (1, 2), dict.fromkeys(FULL.most, 32), 0.01, 256, 16, 16)
SIZES = {"tiny": TINY, "full": FULL}
SAMPLE = (
    ("distillation", "CartPole-v1"),
    ("ppo", "CartPole-v1"),
    ("distillation", "Breakout-MinAtar"),
)
Entries = Iterator[dict[str, Any]]


# --- what is measured -----------------------------------------------------------------------------------------------


class Program(NamedTuple):
    """An algorithm in so many lanes, as a compiled chunk of updates."""

    step: Any  # (state, *inputs) -> state
    state: Any
    inputs: tuple
    updates: int  # in a chunk
    steps: int  # environment steps of a chunk, all seeds
    compile_seconds: float
    needs: int  # bytes, by the compiler


def build(
    algorithm: Any,
    num_envs: int,
    num_seeds: int,
    inputs: tuple = (),
    updates: int = 4,
    keys: Any = None,
    options: Any = None,
) -> Callable[[], Program]:
    """Traces at once, and returns what compiles: that part may run in a thread."""
    import jax

    import jaxkd

    keys = jaxkd.seeds(0, num_seeds) if keys is None else keys
    many = jaxkd.lanes(algorithm) if num_seeds > 1 else algorithm
    keys = keys if num_seeds > 1 else keys[0]

    def chunk(state, *inputs):
        return jax.lax.scan(
            lambda state, _: (many.step(state, *inputs)[0], None), state, None, updates
        )[0]

    began = time.perf_counter()
    start = jax.jit(many.init).lower(keys)
    step = jax.jit(chunk, donate_argnums=0).lower(jax.eval_shape(many.init, keys), *inputs)
    traced = time.perf_counter() - began

    def compiled() -> Program:
        began = time.perf_counter()
        ready = step.compile(compiler_options=options)
        seconds = traced + time.perf_counter() - began
        memory = ready.memory_analysis()
        needs = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )
        return Program(
            ready,
            start.compile()(keys),
            inputs,
            updates,
            T * num_envs * num_seeds * updates,
            seconds,
            needs,
        )

    return compiled


def side_by_side(
    sources: dict[Any, Callable[[], Callable[[], Program]]], deadline: float
) -> dict[Any, Program | str]:
    """Traces one after the other and compiles at once; what is not ready at the deadline is a reason instead of a program."""
    pool = ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) - 2))
    futures: dict[Any, Future | str] = {}
    for name, source in sources.items():
        futures[name] = (
            pool.submit(source())
            if time.perf_counter() < deadline
            else "left out: the row's time was over"
        )
    found: dict[Any, Program | str] = {}
    for name, future in futures.items():
        try:
            found[name] = (
                future
                if isinstance(future, str)
                else future.result(max(1.0, deadline - time.perf_counter()))
            )
        except (
            Exception
        ) as error:  # too large for the device, or a compiler's fault: the others go on
            found[name] = (
                f"{type(error).__name__}: {str(error)[:300]}"
                if str(error)
                else "left out: not compiled in time"
            )
    pool.shutdown(wait=False, cancel_futures=True)
    return found


def timed(program: Program, seconds: float) -> tuple[float, Program]:
    """Seconds of one chunk, the median of the rounds, and the program with its last state (the first one is donated)."""
    import jax

    def rounds(state, calls):
        began = time.perf_counter()
        for _ in range(calls):
            state = program.step(state, *program.inputs)
        jax.block_until_ready(state)
        return state, (time.perf_counter() - began) / calls

    state, _ = rounds(program.state, 1)
    state, one = rounds(state, 1)
    calls, spent = max(1, min(200, math.ceil(seconds / one))), []
    for _ in range(ROUNDS):
        state, each = rounds(state, calls)
        spent.append(each)
    return statistics.median(spent), program._replace(state=state)


def measured(program: Program | str, size: Size) -> dict[str, Any]:
    """The figures of one point."""
    if isinstance(program, str):
        return {"skipped": program}
    try:
        seconds, _ = timed(program, size.seconds)
    except Exception as error:
        return {"skipped": f"{type(error).__name__}: {str(error)[:300]}"}
    return {
        "steps_per_second": program.steps / seconds,
        "milliseconds_an_update": 1e3 * seconds / program.updates,
        "compile_seconds": program.compile_seconds,
        "bytes": program.needs,
    }


def networks(env: Any, **keywords: Any) -> tuple:
    """(teacher, student of 1/15)."""
    import jaxkd

    if env.name.endswith("MinAtar"):
        return jaxkd.networks.cnn(env, **keywords), jaxkd.networks.cnn(env, (4,), (32,), **keywords)
    return jaxkd.networks.mlp(env, (64, 64), separate=True, **keywords), jaxkd.networks.mlp(
        env, (44,), **keywords
    )


def work(kind: str, game: str, num_envs: int, **keywords: Any) -> tuple[Any, tuple]:
    """(algorithm, its inputs); kind is "distillation" or "ppo"."""
    import jax
    import optax

    import jaxkd

    env = jaxkd.envs.make(game, num_envs)
    teacher, student = networks(env, **keywords)
    if kind == "ppo":
        return jaxkd.ppo(env, teacher, learning_rate=2.5e-4, unroll_length=T), ()
    losses = {"kl": jaxkd.losses.forward_kl()}
    kd = jaxkd.distill(
        env, student, teacher, losses=losses, optimizer=optax.adam(1e-3), unroll_length=T
    )
    return kd, (jax.jit(teacher.init)(jax.random.key(1)),)


# --- the rows -------------------------------------------------------------------------------------------------------


def device(size: Size) -> Entries:
    """What the machine is, and its ceilings: a matrix product by precision, and a copy."""
    import jax
    import jax.numpy as jnp

    n = size.product
    x = jax.random.normal(jax.random.key(0), (n, n))

    def rate(fn, *args, times=10):
        program = jax.jit(fn).lower(*args).compile()
        jax.block_until_ready(program(*args))
        spent = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            for _ in range(times):
                out = program(*args)
            jax.block_until_ready(out)
            spent.append((time.perf_counter() - began) / times)
        return statistics.median(spent)

    for name, dtype, precision in (
        ("float32", jnp.float32, "highest"),
        ("tf32", jnp.float32, "default"),
        ("bfloat16", jnp.bfloat16, "default"),
    ):
        with jax.default_matmul_precision(precision):
            seconds = rate(jnp.matmul, x.astype(dtype), x.astype(dtype))
        yield {"what": f"matrix product, {name}", "tflops": 2e-12 * n**3 / seconds}
    wide = jnp.tile(x, (4, 1))
    yield {"what": "copy", "gigabytes_per_second": 2e-9 * wide.nbytes / rate(lambda x: -x, wide)}
    small = jnp.ones(128)
    yield {
        "what": "one small kernel, called",
        "microseconds": 1e6 * rate(lambda x: x + 1, small, times=1000),
    }
    looped = rate(lambda x: jax.lax.fori_loop(0, 1000, lambda i, x: jnp.cumsum(x) * 0.5, x), small)
    yield {"what": "one small kernel, in a loop of 1000", "microseconds": 1e3 * looped}


def tiny_works() -> dict[str, tuple[Any, tuple]]:
    """One update of each kind, small enough for its parameters to be committed; plain gradient descent, which magnifies no rounding."""
    import jax
    import optax

    import jaxkd

    env = jaxkd.envs.make("CartPole-v1", 16)
    teacher, student = jaxkd.networks.mlp(env, (8, 8), separate=True), jaxkd.networks.mlp(env, (8,))
    memory = jaxkd.networks.lstm(env, (8,), units=8)
    common = dict(unroll_length=16, optimizer=optax.sgd(0.1))
    novelty = {
        "rnd": jaxkd.rewards.rnd(
            predictor=jaxkd.rewards.Predictor(hidden=(8, 8), features=4, batch_size=32)
        )
    }
    params = (jax.jit(teacher.init)(jax.random.key(1)),)
    losses = {"kl": jaxkd.losses.forward_kl()}
    return {
        "ppo": (jaxkd.ppo(env, teacher, **common), ()),
        "kl": (jaxkd.distill(env, student, teacher, losses=losses, **common), params),
        "lstm": (
            jaxkd.distill(env, memory, teacher, losses=losses, sequence_length=8, **common),
            params,
        ),
        "rnd": (jaxkd.ppo(env, teacher, rewards=novelty, **common), ()),
    }


def changes(algorithm: Any, inputs: tuple) -> dict[str, list[float]]:
    """What one update changes of every parameter, and its metrics, as numbers."""
    import jax
    import numpy as np

    import jaxkd

    key = jaxkd.seeds(7, 1)[0]
    with jax.default_matmul_precision("highest"):
        before = jax.jit(algorithm.init)(key)
    after, metrics = jaxkd.run(algorithm, key, 1, *inputs, deterministic=True)
    learnt = lambda state: (state.params, [rewards["params"] for rewards in state.rewards.values()])
    moved = jax.tree.map(
        lambda a, b: np.asarray(a, np.float64) - np.asarray(b, np.float64),
        learnt(after),
        learnt(before),
    )
    means = [
        float(value[0])
        for name, value in sorted(metrics.items())
        if name.startswith(("loss/", "reward/"))
    ]
    return {
        "changes": np.concatenate([x.ravel() for x in jax.tree.leaves(moved)]).tolist(),
        "losses": means,
    }


def correct(size: Size) -> Entries:
    """One update beside a CPU's, and the same bits in two deterministic runs."""
    import jax
    import numpy as np

    import jaxkd

    reference = json.loads(REFERENCE.read_text())
    for name, (algorithm, inputs) in tiny_works().items():
        found = changes(algorithm, inputs)
        apart = {}
        for part in ("changes", "losses"):
            here, there = np.array(found[part]), np.array(reference[name][part])
            apart[part] = (
                float(np.linalg.norm(here - there) / np.linalg.norm(there))
                if here.shape == there.shape
                else math.inf
            )
        yield {
            "what": name,
            "relative_error": apart["changes"],
            "of_losses": apart["losses"],
            "right": max(apart.values()) <= 1e-4,
        }
    for kind, game in (("ppo", "CartPole-v1"), ("distillation", "Breakout-MinAtar")):
        algorithm, inputs = work(kind, game, size.few)
        same = {}
        for deterministic in (True, False):
            runs = [
                jaxkd.run(algorithm, jax.random.key(0), 3, *inputs, deterministic=deterministic)[
                    0
                ].params
                for _ in range(2)
            ]
            same[deterministic] = all(
                bool((a == b).all()) for a, b in zip(*map(jax.tree.leaves, runs), strict=True)
            )
        yield {
            "what": f"{kind}, {game}: same bits twice",
            "deterministic": same[True],
            "plain": same[False],
            "right": same[True],
        }


def grid(kind: str, game: str) -> Callable[[Size], Entries]:
    """Steps per second by environments and seeds; the points that matter most are compiled first."""

    def row(size: Size) -> Entries:
        deadline, algorithms = time.perf_counter() + ROW_SECONDS, {}
        points = [
            (envs, seeds)
            for seeds in size.seeds
            for envs in size.envs
            if envs * seeds <= size.most[game]
        ]
        points.sort(key=lambda point: (point[0] not in (size.envs[1], size.envs[-1]), -point[1]))

        def source(envs, seeds):
            if envs not in algorithms:
                algorithms[envs] = work(kind, game, envs)
            algorithm, inputs = algorithms[envs]
            return build(algorithm, envs, seeds, inputs, updates=1 if envs * seeds > 2**17 else 4)

        programs = side_by_side(
            {point: lambda point=point: source(*point) for point in points}, deadline
        )
        for envs, seeds in sorted(points):
            yield {"num_envs": envs, "seeds": seeds} | measured(programs.pop((envs, seeds)), size)

    row.__doc__ = f"{kind} of {game} by environments and seeds"
    return row


def seeds(size: Size) -> Entries:
    """32 seeds in one call against one (V3), and whether a seed is the same in both."""
    import jax
    import numpy as np

    import jaxkd

    n = 32 if size is FULL else 2
    works = {
        (kind, envs): work(kind, "CartPole-v1", envs)
        for kind in ("distillation", "ppo")
        for envs in (size.few, size.envs[0])
    }
    points = {(*name, number): (*made, number) for name, made in works.items() for number in (1, n)}
    sources = {
        name: lambda p=p, name=name: build(p[0], name[1], p[2], p[1]) for name, p in points.items()
    }
    programs = side_by_side(sources, time.perf_counter() + ROW_SECONDS)
    for kind, envs in works:
        one, many = (measured(programs[kind, envs, number], size) for number in (1, n))
        entry = {"what": kind, "num_envs": envs, "seeds": n}
        if "skipped" in one or "skipped" in many:
            yield entry | {"skipped": one.get("skipped", many.get("skipped"))}
            continue
        times = many["milliseconds_an_update"] / one["milliseconds_an_update"]
        yield entry | {
            "one_ms": one["milliseconds_an_update"],
            "all_ms": many["milliseconds_an_update"],
            "times": times,
        }
    with jax.default_matmul_precision("highest"):
        for (kind, envs), (algorithm, inputs) in works.items():
            keys = jaxkd.seeds(0, n)
            alone = jaxkd.run(algorithm, keys[n - 1], 1, *inputs, deterministic=True)[0].params
            among = jaxkd.run(jaxkd.lanes(algorithm), keys, 1, *inputs, deterministic=True)[
                0
            ].params
            apart = [
                np.abs(np.asarray(a) - np.asarray(b)[-1]).max()
                for a, b in zip(*map(jax.tree.leaves, (alone, among)), strict=True)
            ]
            yield {
                "what": f"{kind}, {envs} environments: a seed alone and among {n}",
                "largest_difference": float(max(apart)),
            }


def added(size: Size) -> Entries:
    """What a teacher's KL and random network distillation add to PPO's time (V5)."""
    import jax

    import jaxkd
    from jaxkd import methods, rewards

    for envs in (size.few, size.envs[1]):
        env = jaxkd.envs.make("CartPole-v1", envs)
        big, curious = (
            jaxkd.networks.mlp(env, (64, 64), separate=True, extra=extra)
            for extra in ((), ("bonus",))
        )
        given = dict(learning_rate=2.5e-4, unroll_length=T)

        def rnd(width, env=env, envs=envs, curious=curious, given=given):
            predictor = rewards.Predictor(
                hidden=(width, width), features=width, batch_size=T * envs // 8, num_minibatches=2
            )
            return methods.exploration(
                env, curious, bonus=rewards.rnd(predictor=predictor, stream="bonus"), **given
            )

        sources = {"ppo": (jaxkd.ppo(env, big, **given), ())}
        sources["kl 64"] = (
            jaxkd.ppo(env, big, big, losses={"kl": jaxkd.losses.forward_kl()}, **given),
            (big.init(jax.random.key(1)),),
        )
        sources |= {f"rnd {width}": (rnd(width), ()) for width in (64, 512)}
        traced = {
            name: lambda made=made, envs=envs: build(made[0], envs, 1, made[1])
            for name, made in sources.items()
        }
        programs = side_by_side(traced, time.perf_counter() + ROW_SECONDS / 2)
        found = {name: measured(program, size) for name, program in programs.items()}
        for name, figures in found.items():
            share = figures.get("milliseconds_an_update", math.nan) / found["ppo"].get(
                "milliseconds_an_update", math.nan
            )
            yield {"what": name, "num_envs": envs, "added": share - 1} | figures


def raw(size: Size) -> Entries:
    """Environments alone, random actions."""
    import jax
    import jax.numpy as jnp

    import jaxkd

    games = (
        "CartPole-v1",
        "Acrobot-v1",
        "Pendulum-v1",
        "Breakout-MinAtar",
        "Asterix-MinAtar",
        "SpaceInvaders-MinAtar",
        "Freeway-MinAtar",
    )

    def source(game, envs):
        env = jaxkd.envs.make(game, envs)

        def action(key):
            if hasattr(env.action_space, "n"):
                return jax.random.randint(key, (envs,), 0, env.action_space.n)
            return jax.random.uniform(key, (envs, *env.action_space.shape), minval=-1.0)

        def one(state, key):
            key_act, key_env = jax.random.split(key)
            env_state, step = env.step(key_env, state[0], action(key_act))
            return (env_state, state[1] + step.reward), None

        init = lambda key: {"env": (env.reset(key)[0], jnp.zeros(envs)), "key": key}

        def step(state):
            key, own = jax.random.split(state["key"])
            return {
                "env": jax.lax.scan(one, state["env"], jax.random.split(own, T))[0],
                "key": key,
            }, {}

        return build(jaxkd.Algorithm(init, step), envs, 1)

    points = [(game, envs) for envs in sorted({size.envs[1], size.envs[-1]}) for game in games]
    programs = side_by_side(
        {point: lambda point=point: source(*point) for point in points},
        time.perf_counter() + ROW_SECONDS,
    )
    for game, envs in points:
        yield {"env": game, "num_envs": envs} | measured(programs[game, envs], size)


def memory(size: Size) -> Entries:
    """`memory_needed` against what the allocator says, in a process of its own, whose peak nothing has raised before."""
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
    """Kernels and microseconds of one update, and what takes them; the scan's share by rollouts of T and 2 T steps."""
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
    programs: dict = side_by_side(sources, time.perf_counter() + ROW_SECONDS)
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
    """What the device ran in one chunk: {"kernels", "microseconds", "most": [[name, times, microseconds], ...]}."""
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
    """(name, microseconds) of what ran on the device's streams, from the trace in a folder; none on a CPU."""
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
    """Seconds from the start of a process to its first update: nothing cached, then from the cache."""
    with tempfile.TemporaryDirectory() as folder:
        for cached in (False, True):
            given = os.environ | {
                "JAX_COMPILATION_CACHE_DIR": folder,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
            }
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, __file__, "--first-update"],
                env=given | _SHARED_MEMORY,
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
    """The entries of a row that runs in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        label = next(name for name, value in SIZES.items() if value is size)
        command = [sys.executable, __file__, "--rows", row, "--size", label, "--out", str(out)]
        done = subprocess.run(
            command, env=os.environ | _SHARED_MEMORY | environment, capture_output=True, text=True
        )
        entries = json.loads(out.read_text())["rows"][row]["entries"] if out.exists() else []
    yield from entries or [{"skipped": (done.stderr or done.stdout)[-400:]}]


_SHARED_MEMORY = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false"
}  # a child beside this process, which holds most of the device's memory


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


# --- what could make it faster, and others --------------------------------------------------------------------------------------

FLAGS = {  # of XLA, each in a process of its own
    "as it is": "",
    "loops as command buffers": "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL",
    "no command buffers": "--xla_gpu_enable_command_buffer=",
    "small command buffers too": "--xla_gpu_graph_min_graph_size=1",
    "loops unrolled twice": "--xla_gpu_enable_while_loop_unrolling=WHILE_LOOP_UNROLLING_DOUBLE_BUFFER",
}


def unrolled(times: int) -> Callable[[], Any]:
    """The rollout's scan, which alone has a body of that file."""

    @contextlib.contextmanager
    def change():
        import jax

        scan = jax.lax.scan

        def longer(body, *args, **keywords):
            mine = getattr(body, "__module__", "") == "jaxkd.rollout"
            return scan(body, *args, **keywords | ({"unroll": times} if mine else {}))

        with mock.patch.object(jax.lax, "scan", longer):
            yield

    return change


def levers_of() -> dict[str, tuple[Callable[[], Any], dict]]:
    """{name: (what is changed while tracing, keywords of the networks)}."""
    import jax
    import jax.numpy as jnp

    from jaxkd import returns
    from jaxkd.distributions import Categorical

    cnn = import_module(
        "jaxkd.networks.cnn"
    )  # the module; the package's name for it is the factory

    def inverted(self, key):
        """One uniform number a row instead of one Gumbel number a logit."""
        share = jnp.cumsum(jax.nn.softmax(self.logits), axis=-1)[..., :-1]
        return jnp.sum(jax.random.uniform(key, share.shape[:-1] + (1,)) >= share, axis=-1).astype(
            jnp.int32
        )

    def associated(x, decay):
        join = lambda later, row: (row[0] * later[0], row[1] + row[0] * later[1])
        return jax.lax.associative_scan(join, (decay, x), reverse=True)[1]

    return {
        "as it is": (contextlib.nullcontext, {}),
        "scan unrolled 2": (unrolled(2), {}),
        "scan unrolled 4": (unrolled(4), {}),
        "scan unrolled 8": (unrolled(8), {}),
        "one uniform number an action": (
            lambda: mock.patch.object(Categorical, "sample", inverted),
            {},
        ),
        "no random numbers in choosing": (
            lambda: mock.patch.object(Categorical, "sample", lambda self, key: self.mode()),
            {},
        ),
        "bfloat16": (contextlib.nullcontext, {"dtype": jnp.bfloat16}),
        "banded convolution": (lambda: mock.patch.object(cnn, "convolve", cnn.banded), {}),
        "advantages by an associative scan": (
            lambda: mock.patch.object(returns, "discounted_sum", associated),
            {},
        ),
        "rbg keys": (contextlib.nullcontext, {}),
    }


def levers(size: Size) -> Entries:
    """Each lever alone against the engine as it is, compiled side by side."""
    import jax

    apply = {"banded convolution": ("Breakout",), "advantages by an associative scan": ("ppo",)}
    found: dict = {}

    def source(name, kind, game):
        change, keywords = levers_of()[name]
        with change():
            algorithm, inputs = work(kind, game, size.sample, **keywords)
            keys = (
                jax.random.split(jax.random.key(0, impl="rbg"), 1) if name == "rbg keys" else None
            )
            return build(algorithm, size.sample, 1, inputs, keys=keys)

    for kind, game in SAMPLE:
        names = [
            name
            for name in levers_of()
            if any(word in f"{kind} {game}" for word in apply.get(name, ("",)))
        ]
        sources = {
            name: lambda name=name, kind=kind, game=game: source(name, kind, game) for name in names
        }
        programs = side_by_side(sources, time.perf_counter() + ROW_SECONDS)
        for name in names:
            found[name] = measured(programs[name], size)
            gain = found["as it is"].get("milliseconds_an_update", math.nan) / found[name].get(
                "milliseconds_an_update", math.nan
            )
            yield {"lever": name, "what": f"{kind}, {game}", "gain": gain} | found[name]


def flags(size: Size) -> Entries:
    """The same programs under flags of XLA, each in a process of its own."""
    plain: dict = {}
    for name, flag in FLAGS.items():
        given = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
        for entry in in_a_child("sample", size, XLA_FLAGS=given):
            before = plain.setdefault(entry.get("what"), entry)
            gain = before.get("milliseconds_an_update", math.nan) / entry.get(
                "milliseconds_an_update", math.nan
            )
            yield {"flags": name, "xla": flag, "gain": gain} | entry


def rejax(size: Size) -> Entries:
    """PPO of CartPole beside Rejax in a process of its own, in turns; PEER_SITE is a folder with rejax and gymnax below 1."""
    site = os.environ.get("PEER_SITE")
    if site is None:
        yield {"skipped": "PEER_SITE names no folder with rejax 0.1.3 and gymnax 0.0.9"}
        return
    for envs in (size.few, size.envs[1]):
        updates = 64
        given = (
            os.environ
            | _SHARED_MEMORY
            | {"PEER_ENVS": str(envs), "PYTHONPATH": f"{site}:{os.environ.get('PYTHONPATH', '')}"}
        )
        command = [
            sys.executable,
            str(HERE.parent / "peers" / "with_rejax.py"),
            "ppo",
            str(updates),
        ]
        program = build(work("ppo", "CartPole-v1", envs)[0], envs, 1, updates=updates)()
        with subprocess.Popen(
            command,
            env=given,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as child:
            ready = json.loads(child.stdout.readline() or '{"compile_seconds": null}')  # pyright: ignore[reportOptionalMemberAccess]
            ours, theirs = [], []
            for _ in range(ROUNDS if ready["compile_seconds"] else 0):
                seconds, program = timed(program, 0)
                ours.append(program.steps / seconds)
                print("go", file=child.stdin, flush=True)
                told = json.loads(child.stdout.readline())  # pyright: ignore[reportOptionalMemberAccess]
                theirs.append(told["steps"] / told["seconds"])
            child.terminate()
        if not ours:
            yield {"num_envs": envs, "skipped": "rejax did not start"}
            continue
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        figures = {
            "ours": statistics.median(ours),
            "theirs": statistics.median(theirs),
            "ratio": ratio,
        }
        yield (
            {"num_envs": envs}
            | figures
            | {
                "our_compile_seconds": program.compile_seconds,
                "their_compile_seconds": ready["compile_seconds"],
            }
        )


def sample(size: Size) -> Entries:
    """The three programs by which flags are judged."""
    sources = {}
    for kind, game in SAMPLE:
        algorithm, inputs = work(kind, game, size.sample)
        sources[f"{kind}, {game}"] = lambda algorithm=algorithm, inputs=inputs: build(
            algorithm, size.sample, 1, inputs
        )
    programs = side_by_side(sources, time.perf_counter() + ROW_SECONDS)
    for what, program in programs.items():
        yield {"what": what} | measured(program, size)


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
    "levers": levers,
    "flags": flags,
    "rejax": rejax,
    "sample": sample,
    "peaks": peaks,
}
ASIDE = ("levers", "flags", "rejax", "sample", "peaks")  # run only where they are named


# --- the frame ------------------------------------------------------------------------------------------------------


def write(out: Path, result: dict) -> None:
    """As one whole: a cut leaves the file before it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    rounded = json.loads(
        json.dumps(result, default=float), parse_float=lambda x: float(f"{float(x):.5g}")
    )
    part.write_text(json.dumps(rounded, indent=1) + "\n")
    part.replace(out)


def run_rows(rows: tuple[str, ...], size: Size, out: Path, minutes: float) -> dict:
    """Each row's figures into the file as they come; a row that fails is a row that says so."""
    import jax

    from jaxkd.cli.summary import versions

    began = time.perf_counter()
    card = jax.devices()[0]
    made = {
        "device": card.device_kind,
        "platform": card.platform,
        "cores": len(os.sched_getaffinity(0)),
        "date": str(date.today()),
    }
    result: dict = (
        json.loads(out.read_text())
        if out.exists()
        else {"made": made | {"versions": versions()}, "rows": {}}
    )
    for name in rows:
        if time.perf_counter() - began > 60 * minutes:
            print(f"{name}: left out, {minutes:g} minutes are over", flush=True)
            continue
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
    return result


def make_reference() -> None:
    """The committed numbers of one update each, made on a CPU."""
    found = {name: changes(*made) for name, made in tiny_works().items()}
    REFERENCE.write_text(json.dumps(found, indent=None).replace("], ", "],\n") + "\n")


def main(
    rows: tuple[str, ...] = (),
    size: Literal["tiny", "full"] = "full",
    out: Path = HERE / "accelerator.json",
    minutes: float = 8.0,
    first_update: bool = False,
    write_reference: bool = False,
) -> None:
    """Measures this library on this machine's accelerator, row by row.

    Args:
        rows: which, by name; default all but levers, flags and their like.
        size: of the points; tiny is for seeing that it runs.
        out: the JSON that is written, or gone on with.
        minutes: after which no further row begins.
        first_update: prints what a fresh process needs to its first update, and ends.
        write_reference: makes the committed numbers of row "correct" anew, on a CPU, and ends.
    """
    if first_update:
        return print_first_update()
    if write_reference:
        return make_reference()
    unknown = set(rows) - set(ROWS)
    if unknown:
        sys.exit(f"error: unknown rows {', '.join(sorted(unknown))}. There are: {', '.join(ROWS)}.")
    run_rows(rows or tuple(name for name in ROWS if name not in ASIDE), SIZES[size], out, minutes)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
