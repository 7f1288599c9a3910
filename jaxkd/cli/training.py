"""One training of many seeds by one compiled update, watched by the host.

Legend of shapes: `n` seeds, `U` updates of a chunk.
"""

import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.base import Algorithm
from jaxkd.cli.failure import Diverged
from jaxkd.cli.phases import Job
from jaxkd.optimize import component_key
from jaxkd.run import stream

_CHUNK_SECONDS = 1.0  # between two looks at a run


class Trained(NamedTuple):
    """What a training leaves."""

    state: Any  # State [n, ...]; None of a policy from a file
    alive: np.ndarray  # bool [n], finite to the end
    updates: int  # fewer than planned where the user stopped
    env_steps: int  # of one seed
    wall_seconds: float  # of all seeds, without compiling
    compile_seconds: float


class _Chunk(NamedTuple):
    """What was seen at one look."""

    done: int  # updates so far
    total: int
    values: dict[str, np.ndarray]  # metrics [U, n]
    elapsed: float  # seconds since the phase began
    rate: float  # updates a second


def phase_keys(keys: jax.Array, phase: str) -> jax.Array:
    """A stream of keys [n] of its own for every phase: adding one changes no other."""
    return jax.vmap(lambda key: component_key(key, phase))(keys)


def train(
    job: Job,
    phase: str,
    algorithm: Algorithm,
    num_updates: int,
    *inputs: Any,
    alive: np.ndarray,
    steps_per_update: int,
) -> Trained:
    """Trains every seed for `num_updates`, or until the user stops it.

    Updates are dispatched one by one, without waiting, in chunks of about a second: only one
    program is compiled.

    Args:
        alive: bool [n], the seeds that are worth watching from the start.
        steps_per_update: environment steps of one seed.

    Raises:
        Diverged: when no seed is left.
    """
    began, compiled_before = time.monotonic(), job.compile_seconds()

    def seconds() -> tuple[float, float]:
        """Spent in this phase: (running, compiling)."""
        compiling = job.compile_seconds() - compiled_before
        return time.monotonic() - began - compiling, compiling

    job.progress.begin(phase, "compiling")
    state, done, rows, chunk_size, last_look = None, 0, [], 1, 0.0
    keys = phase_keys(job.keys, phase)
    for state, metrics in stream(algorithm, keys, num_updates, *inputs, chunk_size=1):
        rows.append(metrics)
        done += 1
        if len(rows) < chunk_size and done < num_updates:
            continue
        # Concatenating waits for the device.
        values = {name: np.concatenate([row[name] for row in rows]) for name in metrics}
        running, compiling = seconds()
        rate = len(rows) / max(running - last_look, 1e-3)
        chunk = _Chunk(done, num_updates, values, running + compiling, rate)
        lost, since = _lost(chunk, _finite(state.params), alive)
        _record(job, phase, chunk, alive & ~lost, steps_per_update)
        _name_lost(phase, lost, since, alive)
        alive = alive & ~lost
        chunk_size = max(1, min(2 * len(rows), round(_CHUNK_SECONDS * rate)))
        rows, last_look = [], running
        if job.stop():
            break
    assert state is not None  # num_updates is positive
    return Trained(state, alive, done, done * steps_per_update, *seconds())


def _record(job: Job, phase: str, chunk: _Chunk, alive: np.ndarray, steps_per_update: int) -> None:
    """The chunk's line in metrics.jsonl, and on the terminal."""
    means = {name: mean(rows, axis=0) for name, rows in chunk.values.items()}
    job.directory.append(
        "metrics.jsonl",
        phase=phase,
        updates=chunk.done,
        env_steps=chunk.done * steps_per_update,
        elapsed=round(chunk.elapsed, 3),
        seeds=means,
    )
    job.progress.advance(
        chunk.done,
        chunk.total,
        steps_per_second=chunk.rate * steps_per_update * len(job.keys),
        # A seed that is lost may go on with returns that look like any other.
        mean_return=float(mean(means["return"][alive])),
        remaining=(chunk.total - chunk.done) / chunk.rate,
        lost=int((~alive).sum()),
    )


def mean(values: Any, axis: int | None = None) -> np.ndarray:
    """The mean of the finite values; nan where there is none."""
    values = np.asarray(values)
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


def _lost(chunk: _Chunk, finite: jax.Array, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The seeds [n] that have become non-finite in this chunk, and the update [n] when it was seen.

    Metrics without a "/" do not count: "return" is -inf before the first episode ends.
    """
    watched = [np.isfinite(rows) for name, rows in chunk.values.items() if "/" in name]
    sound_rows = np.all(watched, axis=0)  # [U, n]
    sound = sound_rows.all(axis=0)
    before = chunk.done - sound_rows.shape[0]
    first_bad_row = np.argmin(sound_rows, axis=0)
    since = np.where(sound, chunk.done, before + 1 + first_bad_row)
    return alive & ~(sound & np.asarray(finite)), since


def _name_lost(phase: str, lost: np.ndarray, since: np.ndarray, alive: np.ndarray) -> None:
    """One line on standard error for each update at which seeds were lost.

    Raises:
        Diverged: instead of the last line, when no seed is left.
    """
    nobody_left = not (alive & ~lost).any()
    updates = sorted(set(since[lost].tolist()))
    for update in updates:
        seeds = ", ".join(str(seed) for seed in np.flatnonzero(lost & (since == update)))
        cause = f"run diverged: seeds {seeds} not finite at update {update} ({phase})."
        if nobody_left and update == updates[-1]:
            raise Diverged(f"{cause} No seed is left.")
        print(f"error: {cause}", file=sys.stderr, flush=True)
