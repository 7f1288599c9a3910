"""What a command does, as data: phases in order, and the one loop that runs them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxkd.cli.directory import Directory
from jaxkd.cli.failure import Interrupted
from jaxkd.cli.log import Log
from jaxkd.cli.progress import Progress


class Job(NamedTuple):
    """What every phase of a run needs."""

    directory: Directory
    progress: Progress
    keys: jax.Array  # [n], one a seed
    compile_seconds: Callable[[], float]
    stop: Callable[[], str]  # names the signal that asked to stop, "" before one did
    log: Log
    settings_digest: str  # of all that the result depends on
    checkpoint_every: float | None  # seconds; 0: at the end of a phase only; None: as may be
    track: Callable = lambda *metrics, **where: None  # see `tracking.Tracker.write`


class Phase(NamedTuple):
    """One part of a command.

    A further one is a further row: what reads its result names it, nothing else changes.

        Phase("compress", reads=("student",), leaves="small student", work=compress(levels=256))

    with `compress(levels)` returning `work(job, student) -> small student`.
    """

    name: str
    reads: tuple[str, ...]  # what earlier phases left, in the order in which `work` takes it
    leaves: str
    work: Callable  # (job, *what it reads) -> what it leaves
    makes: Any = None  # `work.Made`, of a phase that leaves a policy


def perform(phases: list[Phase], job: Job) -> dict[str, Any]:
    """Everything that the phases leave, by name; they run in the order given.

    Raises:
        Interrupted: the user or the system asked to stop; what earlier phases saved is kept.
    """
    left: dict[str, Any] = {}
    for phase in phases:
        if job.stop():
            raise Interrupted(f"{job.stop()}: stopped before the phase {phase.name!r}.")
        inputs = [left[name] for name in phase.reads]
        left[phase.leaves] = phase.work(job, *inputs)
    return left


def check_order(phases: list[Phase]) -> None:
    """Raises a ValueError where a phase reads what no earlier one leaves: a mistake in a command.

    >>> check_order([Phase("student", ("teacher",), "student", print)])
    Traceback (most recent call last):
    ...
    ValueError: phase 'student' reads 'teacher', which no phase before it leaves.
    """
    left: set[str] = set()
    for phase in phases:
        for name in phase.reads:
            if name not in left:
                raise ValueError(
                    f"phase {phase.name!r} reads {name!r}, which no phase before it leaves."
                )
        left.add(phase.leaves)
