"""One training of many seeds by one compiled update, watched by the host.

Legend of shapes: `n` seeds, `U` updates of a chunk.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxkd import sharding
from jaxkd.base import Algorithm
from jaxkd.cli.failure import Diverged
from jaxkd.cli.log import Rows, Window
from jaxkd.cli.phases import Job
from jaxkd.cli.saving import Identity, Kept, Saves
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
    earlier: tuple[float, float] = (0.0, 0.0)  # of these, in a process before: (wall, compiling)


class _Chunk(NamedTuple):
    """What was seen at one look."""

    done: int  # updates so far
    total: int
    values: Rows  # metrics [U, n]
    elapsed: float  # seconds that the phase has taken
    rate: float  # updates a second


def phase_keys(keys: jax.Array, phase: str) -> jax.Array:
    """A stream of keys [n] of its own for every phase: adding one changes no other.

    "student-2" has that of "student": how many there are changes none of them.
    """
    stream_of_keys = phase.partition("-")[0]
    return jax.vmap(lambda key: component_key(key, stream_of_keys))(keys)


def train(
    job: Job,
    phase: str,
    algorithm: Algorithm,
    num_updates: int,
    *inputs: Any,
    alive: np.ndarray,
    steps_per_update: int,
    names: Sequence[str] = (),
    points: int = 1,
    mesh: Mesh | None = None,
    teachers: Sequence[Identity] = (),
) -> Trained:
    """Trains every seed for `num_updates`, or until the user stops it.

    Goes on from the phase's newest checkpoint, if there is one. Updates are dispatched one by one,
    without waiting, in chunks of about a second: only one program is compiled.

    Args:
        alive: bool [n], the seeds that are worth watching from the start.
        steps_per_update: environment steps of one seed.
        names: of the seeds; default their numbers.
        points: of a grid, the seeds of each after those of the one before; the second one's lines
            are those of the phase "NAME-2".
        mesh: of the devices that the algorithm is spread over; the state is left on one of them.
        teachers: whose params the inputs are.

    Raises:
        Diverged: when no seed is left.
        UsageError: the checkpoints there are of another run.
        ArtifactError: a checkpoint could not be written.
    """
    job.progress.begin(phase, "compiling")
    keys = phase_keys(job.keys, phase)
    with Saves(job, phase, teachers) as saves:
        watch = _Watch(job, phase, num_updates, steps_per_update, alive, names, points)
        found = saves.restore(lambda: watch.like(algorithm, keys, inputs))
        start = watch.resume(*found) if found else None
        if watch.done == num_updates:
            return watch.trained(start)
        if start is not None and mesh is not None:
            start = sharding.spread(mesh, start)
        saves.begin()
        left = num_updates - watch.done
        for state, metrics in stream(algorithm, keys, left, *inputs, chunk_size=1, state=start):
            if not watch.looks(metrics):
                continue
            watch.look(state)
            ended = watch.done == num_updates or bool(job.stop())
            if ended or saves.due():
                saves.save(watch.done, watch.score, state=state, **watch.kept())
            if ended:
                break
    if watch.done == num_updates:
        job.log.believe(job.log.mark(), finished=phase)
    return watch.trained(state if mesh is None else jax.device_put(state, jax.devices()[0]))


class _Watch:
    """One phase as the host sees it: counts updates, writes lines, names seeds that are lost."""

    def __init__(
        self,
        job: Job,
        phase: str,
        total: int,
        steps_per_update: int,
        alive: np.ndarray,
        names: Sequence[str] = (),
        points: int = 1,
    ):
        self.points = points
        self.names = names or [str(seed) for seed in range(len(alive))]
        self.job, self.phase, self.total, self.alive = job, phase, total, alive
        self.steps_per_update = steps_per_update
        self.done, self.score = 0, np.nan
        self._window, self._chunk, self._chunk_size = Window(total), [], 1
        self._began, self._compiled = time.monotonic(), job.compile_seconds()
        self._before, self._last_look = (0.0, 0.0), 0.0

    def seconds(self) -> tuple[float, float]:
        """That the phase has taken: (running, compiling)."""
        compiling = self.job.compile_seconds() - self._compiled
        running = time.monotonic() - self._began - compiling
        return self._before[0] + running, self._before[1] + compiling

    def looks(self, metrics: dict[str, Any]) -> bool:
        """Whether it is time to look, one more update being done."""
        self._chunk.append(metrics)
        self.done += 1
        full = len(self._chunk) >= self._chunk_size or self.done == self.total
        return full or bool(self.job.stop())

    def look(self, state: Any) -> None:
        """Waits for what was dispatched, writes its lines, shows where the phase is."""
        chunk, self._chunk = self._chunk, []
        # Concatenating waits for the device.
        values = {name: np.concatenate([row[name] for row in chunk]) for name in chunk[0]}
        running, compiling = self.seconds()
        rate = len(chunk) / max(running - self._last_look, 1e-3)
        seen = _Chunk(self.done, self.total, values, running + compiling, rate)
        lost, since = _lost(seen, _finite(state.params), self.alive)
        nobody_left = not (self.alive & ~lost).any()
        self._write(values, everything=self.done == self.total or nobody_left)
        self._show(seen, self.alive & ~lost)
        _name_lost(self.phase, lost, since, self.alive, self.names)
        self.alive = self.alive & ~lost
        self._chunk_size = max(1, min(2 * len(chunk), round(_CHUNK_SECONDS * rate)))
        self._last_look = running

    def _write(self, values: Rows, everything: bool) -> None:
        """The lines of metrics.jsonl that are full now; with `everything` what is left, too."""
        before = self.done - len(next(iter(values.values()))) - self._window.count
        groups = self._window.add(values)
        if everything and self._window.count:
            groups.append(self._window.rows)
        for rows in groups:
            before += len(next(iter(rows.values())))
            env_steps = before * self.steps_per_update
            for number in range(self.points):
                phase = self.phase if not number else f"{self.phase}-{number + 1}"
                own = {name: np.split(x, self.points, axis=1)[number] for name, x in rows.items()}
                means = {name: mean(x, axis=0) for name, x in own.items()}
                self.job.log.append(phase=phase, updates=before, env_steps=env_steps, seeds=means)
                self.job.track(own, step=env_steps, prefix=phase)

    def _show(self, seen: _Chunk, alive: np.ndarray) -> None:
        """Where the phase is, on the terminal and in timing.jsonl."""
        # A seed that is lost may go on with returns that look like any other.
        self.score = float(mean(mean(seen.values["return"], axis=0)[alive]))
        elapsed = round(seen.elapsed, 3)
        self.job.directory.append(
            "timing.jsonl", phase=self.phase, updates=seen.done, elapsed=elapsed
        )
        self.job.progress.advance(
            seen.done,
            seen.total,
            steps_per_second=seen.rate * self.steps_per_update * len(self.job.keys),
            mean_return=self.score,
            remaining=(seen.total - seen.done) / seen.rate,
            lost=int((~alive).sum()),
        )

    def kept(self) -> dict[str, Any]:
        """What a checkpoint holds beside the state."""
        seconds = np.array(self.seconds(), np.float32)
        return dict(alive=self.alive, rows=self._window.padded(), seconds=seconds)

    def like(self, algorithm: Algorithm, keys: jax.Array, inputs: tuple) -> dict[str, Any]:
        """The shapes of a checkpoint."""
        state = jax.eval_shape(algorithm.init, keys)
        metrics = jax.eval_shape(algorithm.step, state, *inputs)[1]
        rows = {
            name: jax.ShapeDtypeStruct((self._window.size, *x.shape), x.dtype)
            for name, x in metrics.items()
        }
        seconds = np.zeros(2, np.float32)
        return dict(state=state, alive=self.alive, rows=rows, seconds=seconds)

    def resume(self, kept: Kept, done: int) -> Any:
        """Goes on after `done` updates; returns the state."""
        finished = done == self.total
        self.job.log.believe(kept.mark, self.phase if finished else "")
        self.done, self.alive = done, np.asarray(kept.alive)
        self._window.resume(kept.rows, done)
        running, compiling = np.asarray(kept.seconds).tolist()
        self._before, self._last_look = (running, compiling), running
        return kept.state

    def trained(self, state: Any) -> Trained:
        steps = self.done * self.steps_per_update
        return Trained(state, self.alive, self.done, steps, *self.seconds(), self._before)


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


def _name_lost(
    phase: str, lost: np.ndarray, since: np.ndarray, alive: np.ndarray, names: Sequence[str]
) -> None:
    """One line on standard error for each update at which seeds were lost.

    Raises:
        Diverged: instead of the last line, when no seed is left.
    """
    nobody_left = not (alive & ~lost).any()
    updates = sorted(set(since[lost].tolist()))
    for update in updates:
        seeds = ", ".join(names[seed] for seed in np.flatnonzero(lost & (since == update)).tolist())
        cause = f"run diverged: seeds {seeds} not finite at update {update} ({phase})."
        if nobody_left and update == updates[-1]:
            raise Diverged(f"{cause} No seed is left.")
        print(f"error: {cause}", file=sys.stderr, flush=True)
