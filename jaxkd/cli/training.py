"""One phase of a run: many seeds trained by one compiled update, watched by the host.

Legend of shapes: `n` seeds.
"""

import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.base import Algorithm, State
from jaxkd.cli.directory import Directory
from jaxkd.cli.failure import Diverged
from jaxkd.cli.progress import Progress
from jaxkd.optimize import component_key
from jaxkd.run import stream

_CHUNK_SECONDS = 1.0  # between two looks at a run


class Job(NamedTuple):
    """What every phase of a run needs."""

    directory: Directory
    progress: Progress
    keys: jax.Array  # [n]
    steps_per_update: int  # environment steps of one seed, in the phase under way
    compile_seconds: Callable[[], float]
    stop: Callable[[], str]  # names the signal that asked to stop


class Trained(NamedTuple):
    """What a phase leaves."""

    state: State  # [n, ...]
    alive: np.ndarray  # bool [n], finite to the end
    updates: int  # fewer than planned where the user stopped
    env_steps: int  # of one seed
    wall_seconds: float  # without compiling
    compile_seconds: float


def phase_keys(keys: jax.Array, phase: str) -> jax.Array:
    """A stream of keys [n] of its own for every phase: adding one changes no other."""
    return jax.vmap(lambda key: component_key(key, phase))(keys)


def train(
    job: Job, phase: str, algorithm: Algorithm, num_updates: int, *inputs: Any, alive: np.ndarray
) -> Trained:
    """Runs a phase. Updates are dispatched one by one, without waiting, in chunks of about a second: only one program is compiled.

    Raises:
        Diverged: when no seed is left.
    """
    started, compiled = time.monotonic(), job.compile_seconds()

    def seconds() -> tuple[float, float]:
        compiling = job.compile_seconds() - compiled
        return time.monotonic() - started - compiling, compiling

    job.progress.begin(phase, "compiling")
    state, done, chunk, chunk_size, looked = None, 0, [], 1, 0.0
    for state, metrics in stream(
        algorithm, phase_keys(job.keys, phase), num_updates, *inputs, chunk_size=1
    ):
        chunk.append(metrics)
        done += 1
        if len(chunk) < chunk_size and done < num_updates:
            continue
        values = {
            name: np.concatenate([row[name] for row in chunk]) for name in metrics
        }  # [updates, n], waits for the device
        wall, compiling = seconds()
        rate = len(chunk) / max(wall - looked, 1e-3)
        _record(job, phase, done, num_updates, values, elapsed=wall + compiling, rate=rate)
        alive = _survivors(phase, done, values, _finite(state.params), alive)
        chunk, chunk_size, looked = (
            [],
            max(1, min(2 * len(chunk), round(_CHUNK_SECONDS * rate))),
            wall,
        )
        if job.stop():
            break
    assert state is not None  # num_updates is positive
    return Trained(state, alive, done, done * job.steps_per_update, *seconds())


def _record(
    job: Job, phase: str, done: int, total: int, values: dict, *, elapsed: float, rate: float
) -> None:
    """The chunk's line in metrics.jsonl, and on the terminal."""
    means = {name: mean(rows, axis=0) for name, rows in values.items()}
    job.directory.append(
        "metrics.jsonl",
        phase=phase,
        updates=done,
        env_steps=done * job.steps_per_update,
        elapsed=round(elapsed, 3),
        seeds=means,
    )
    steps_per_second = rate * job.steps_per_update * len(job.keys)
    shown = float(mean(means["return"]))
    job.progress.advance(
        done,
        total,
        steps_per_second=steps_per_second,
        mean_return=shown,
        remaining=(total - done) / rate,
    )


def mean(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """The mean of the finite values; nan where there is none."""
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(finite, values, 0.0).sum(axis) / finite.sum(axis)


@jax.jit
def _finite(params: Any) -> jax.Array:
    """Whether all parameters of each seed are finite [n]."""
    leaves = [
        jnp.all(jnp.isfinite(leaf.reshape(leaf.shape[0], -1)), axis=1)
        for leaf in jax.tree.leaves(params)
    ]
    return jnp.all(jnp.stack(leaves), axis=0)


def _survivors(
    phase: str, done: int, values: dict[str, np.ndarray], finite: jax.Array, alive: np.ndarray
) -> np.ndarray:
    """`alive` without the seeds that have become non-finite, which are named; "return" may be nan before an episode ends."""
    rows = np.all(
        [np.isfinite(x) for name, x in values.items() if "/" in name], axis=0
    )  # [updates, n]
    sound = rows.all(axis=0)
    dead = alive & ~(sound & np.asarray(finite))
    first = np.where(
        sound, done, done - rows.shape[0] + 1 + np.argmin(rows, axis=0)
    )  # the update at which it was seen
    for update in sorted(set(first[dead].tolist())):
        seeds = ", ".join(str(seed) for seed in np.flatnonzero(dead & (first == update)))
        cause = f"run diverged: seeds {seeds} not finite at update {update} ({phase})."
        if not (alive & ~dead).any() and update == first[dead].max():
            raise Diverged(f"{cause} No seed is left.")
        print(f"error: {cause}", file=sys.stderr, flush=True)
    return alive & ~dead
