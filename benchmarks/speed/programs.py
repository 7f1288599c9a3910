"""Programs of the configuration of throughput.py, compiled side by side and timed by rounds.

32 steps an update, PPO 4 epochs x 4 minibatches, distillation 1 x 4, the student acts; teacher
64-64 and student 44 (MinAtar's network, and 1/15 of it, for its games). Steps per second are
environment steps of all seeds; a point is the median of ROUNDS rounds after one that warms up.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

T, ROUNDS, ROW_SECONDS = 32, 3, 60.0
COMPILE_SECONDS = 40.0  # of a row; the rest is for running
LATE = "left out: the row's time was over"
TOO_LARGE = "left out: more environments x seeds than this row tries (`Size.most`)"


class Size(NamedTuple):
    """How large the points of a row are."""

    envs: tuple[int, ...]
    seeds: tuple[int, ...]
    most: dict[str, int]  # environments x seeds, by game
    seconds: float  # of a round
    product: int  # side of the square matrices of the ceiling
    sample: int  # environments of a lever's programs
    few: int  # environments of the rows "seeds" and "added"


# 2^18 environments x seeds of Breakout took more than an H100's 78 GB while compiling
# (autotuning), hence 2^16.
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

CPU = Size(
    (64, 256),
    (1, 4),
    {"CartPole-v1": 2**10, "Breakout-MinAtar": 2**8, "Asterix-MinAtar": 2**8},
    0.2,
    1024,
    64,
    64,
)

SIZES = {"tiny": TINY, "cpu": CPU, "full": FULL}

SAMPLE = (
    ("distillation", "CartPole-v1"),
    ("ppo", "CartPole-v1"),
    ("distillation", "Breakout-MinAtar"),
)

Entries = Iterator[dict[str, Any]]


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
        return Program(
            ready,
            start.compile()(keys),
            inputs,
            updates,
            T * num_envs * num_seeds * updates,
            seconds,
            bytes_of(ready),
        )

    return compiled


def bytes_of(compiled: Any) -> int:
    """What a program needs on the device, by its compiler."""
    memory = compiled.memory_analysis()
    whole = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return whole + memory.temp_size_in_bytes - memory.alias_size_in_bytes


def side_by_side(
    sources: dict[Any, Callable[[], Callable[[], Program]]], deadline: float
) -> dict[Any, Program | str]:
    """Traces one after the other and compiles at once.

    What is not ready at the deadline is a reason instead of a program.
    """
    pool = ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) - 2))
    futures = {
        name: pool.submit(source()) if time.perf_counter() < deadline else LATE
        for name, source in sources.items()
    }
    found = {name: ready(future, deadline) for name, future in futures.items()}
    pool.shutdown(wait=False, cancel_futures=True)
    return found


def ready(future: Future | str, deadline: float) -> Program | str:
    """The program, or why there is none; too large for the device is a reason like another."""
    if isinstance(future, str):
        return future
    try:
        return future.result(max(1.0, deadline - time.perf_counter()))
    except TimeoutError:
        return "left out: not compiled in time"
    except Exception as error:  # a compiler's fault, too: the other programs go on
        return f"{type(error).__name__}: {str(error)[:300]}"


def timed(program: Program, seconds: float) -> tuple[float, Program]:
    """Seconds of one chunk, the median of the rounds, and the program with its last state.

    The state it came with is donated.
    """
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


def milliseconds(figures: dict[str, Any]) -> float:
    """Of an update; not a number where the point was left out."""
    return figures.get("milliseconds_an_update", math.nan)


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
