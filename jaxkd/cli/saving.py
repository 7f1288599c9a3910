"""Checkpoints of a phase, and how it goes on from them.

Legend of shapes: `n` seeds, `E` updates between two lines of metrics.jsonl.
"""

import hashlib
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd.base import ArtifactError, Policy, UsageError
from jaxkd.checkpoint import Checkpoints
from jaxkd.cli.directory import CHECKPOINTS
from jaxkd.cli.log import MARK
from jaxkd.cli.phases import Job

_QUESTIONS = 8  # observations that a teacher is known by
_EVERY = 30.0  # seconds between two checkpoints where nobody says otherwise
_SHARE = 0.02  # of its time that a phase then gives to them, at most
_TOLERANCE = 1e-3  # of its answers; another device rounds otherwise


class Kept(NamedTuple):
    """What a phase goes on from: a pytree of arrays."""

    state: Any  # State [n, ...]
    alive: Any  # bool [n]
    rows: Any  # metrics [E, n] by name, since the last line of metrics.jsonl, then zeros
    seconds: Any  # [2], running and compiling so far
    mark: Any  # uint8 [MARK], of metrics.jsonl
    answers: Any  # of the teachers


class Identity(NamedTuple):
    """A teacher: its student goes on with no other."""

    digest: str  # SHA-256 of its params
    source: str  # where it is from
    answers: Any  # what it says of the same few observations [n, 8, ...], without [n] if shared


def identify(policy: Policy, params: Any, source: str, obs_spec: Any, shared: bool) -> Identity:
    """The identity of a teacher with params [n, ...], without [n] if shared."""
    draw, sha = np.random.default_rng(0), hashlib.sha256()

    def some(spec: Any) -> np.ndarray:
        shape = (_QUESTIONS, *spec.shape)
        is_float = np.issubdtype(spec.dtype, np.inexact)
        return (draw.normal(size=shape) if is_float else draw.integers(0, 2, shape)).astype(
            spec.dtype
        )

    obs = jax.tree.map(some, obs_spec)

    def answer(params: Any) -> Any:
        carry = policy.initial_carry(_QUESTIONS)
        return policy.step(params, carry, obs, np.ones(_QUESTIONS, np.float32))[1].policy

    for leaf in jax.tree.leaves(jax.device_get(params)):
        sha.update(np.ascontiguousarray(leaf).tobytes())
    answers = jax.jit(answer if shared else jax.vmap(answer))(params)
    return Identity(sha.hexdigest(), source, answers)


class Saves:
    """The checkpoints of one phase of a run; a `with` block waits for the last of them."""

    def __init__(self, job: Job, phase: str, teachers: Sequence[Identity]):
        self._job, self._phase = job, phase
        self._path = job.directory.path / CHECKPOINTS / phase
        self._about: dict[str, Any] = dict(
            settings=job.settings_digest, phase=phase, teachers=[each.digest for each in teachers]
        )
        self._sources = [each.source for each in teachers]
        self._answers = [each.answers for each in teachers]
        self._checkpoints, self._last, self._took = Checkpoints(self._path), time.monotonic(), 0.0

    def due(self) -> bool:
        """Whether it is time for another one; where they are large that is later."""
        every = self._job.checkpoint_every
        wait = max(_EVERY, self._took / _SHARE) if every is None else every
        return wait > 0 and time.monotonic() - self._last >= wait

    def save(self, step: int, score: float, **kept: Any) -> None:
        """Everything but what is known here: the mark of metrics.jsonl and the teachers' answers.

        Args:
            score: higher is better; one that is not finite is none.
        """
        began = time.monotonic()
        whole = Kept(mark=self._job.log.mark(), answers=self._answers, **kept)
        self._checkpoints.save(
            whole,
            step,
            score=score if np.isfinite(score) else None,
            **self._about,
            sources=self._sources,
        )
        self._last = time.monotonic()
        self._took = self._last - began

    def restore(self, like: Callable[[], dict[str, Any]]) -> tuple[Kept, int] | None:
        """What the phase goes on from, and its step; None: it begins.

        Args:
            like: shapes of what `save` is given, asked for where there is a checkpoint.

        Raises:
            UsageError: the checkpoints are of another run or teacher.
        """
        there = self._checkpoints.steps()
        if not there:
            return None
        mark = jax.ShapeDtypeStruct((MARK,), np.uint8)
        wanted = Kept(mark=mark, answers=self._answers, **like())
        rows, wanted = wanted.rows, wanted._replace(rows=self._known(wanted.rows, max(there)))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                found = self._checkpoints.restore(wanted, **self._about)
            except ArtifactError as error:
                found = None
                warnings.warn(f"{error} The phase {self._phase!r} begins anew.", stacklevel=1)
        for warning in said:
            print(f"warning: {warning.message}", file=sys.stderr, flush=True)
        self._forget([step for step in there if found is None or step > found[1]])
        if found is None:
            return None
        kept, step = found
        self._check_answers(kept.answers)
        unknown = {
            name: np.full(row.shape, np.nan, row.dtype)
            for name, row in rows.items()
            if name not in kept.rows
        }
        return kept._replace(rows=unknown | kept.rows), step

    def _known(self, rows: dict[str, Any], step: int) -> dict[str, Any]:
        """Those that the checkpoint has: the version that wrote it may not have had all metrics."""
        try:
            there = self._checkpoints.paths(step)
        except ArtifactError:  # restoring says so
            return rows
        return {name: row for name, row in rows.items() if f".rows[{name!r}]" in there}

    def begin(self) -> None:
        """What came after is written again: lines of metrics.jsonl, later phases' checkpoints."""
        self._job.log.cut()
        believed = {*self._job.log.phases, self._phase}
        for other in self._path.parent.iterdir():
            if other.name not in believed:
                shutil.rmtree(other)

    def _forget(self, steps: list[int]) -> None:
        """Damaged ones: they would pass for the newest."""
        if steps:
            self._checkpoints.close()
            for step in steps:
                shutil.rmtree(self._path / str(step))
            self._checkpoints = Checkpoints(self._path)

    def _check_answers(self, then: Any) -> None:
        pairs = zip(jax.tree.leaves(then), jax.tree.leaves(self._answers), strict=True)
        if not all(np.allclose(a, b, _TOLERANCE, _TOLERANCE, equal_nan=True) for a, b in pairs):
            raise UsageError(
                f"the teacher of {self._path} answers otherwise than when it was saved: its "
                f"network is computed differently now. Resume with the version that began the run."
            )

    def __enter__(self) -> "Saves":
        return self

    def __exit__(self, *error: Any) -> None:
        self._checkpoints.close()
