"""How fast this machine trains, and `--budget`: steps that fit a wall time."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.base import Algorithm
from jaxkd.cli.phases import Phase
from jaxkd.cli.plan import Plan, budget_seconds
from jaxkd.cli.settings import Distill, Teach
from jaxkd.cli.work import Course, Together, together
from jaxkd.run import seeds, stream

_SECONDS = 1.0  # of measuring, a training


class Pace(NamedTuple):
    """Seconds of the first update, mostly of compiling it, and of each one that follows."""

    compiling: float
    update: float


def pace(algorithm: Algorithm, keys: jax.Array, inputs: list, seconds: float) -> Pace:
    """Measured by running at least two updates, for about so many seconds."""
    began = time.perf_counter()
    updates = stream(algorithm, keys, 10**6, *inputs, chunk_size=1)
    jax.block_until_ready(next(updates))
    compiling = time.perf_counter() - began
    began, done = time.perf_counter(), 0
    while done < 2 or time.perf_counter() - began < seconds:
        jax.block_until_ready(next(updates))
        done += 1
    return Pace(compiling, (time.perf_counter() - began) / done)


def trainings(planned: Plan, keys: jax.Array) -> Iterator[tuple[Phase, Together | None]]:
    """The phases of a plan that leave a policy, with what their updates take; None of a file.

    Teachers' parameters are zeros where they are not known: nothing depends on them here.
    """
    known: dict[str, Any] = {}
    for phase in planned.phases:
        if phase.makes is None:
            continue
        policy, course, params = phase.makes
        if course is None:
            known[phase.leaves] = params, True
            yield phase, None
            continue
        shapes = jax.eval_shape(jax.vmap(policy.init), keys)
        known[phase.leaves] = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), False
        taught_by = [known[name] for name in phase.reads]
        shared = all(shared for _, shared in taught_by)
        yield phase, together(course, keys, [given for given, _ in taught_by], shared)


def fitted(settings: Distill | Teach, planned: Plan) -> Distill | Teach:
    """The settings with as many steps as fit the budget, a teacher's and a student's in proportion.

    It is measured once: a run that is resumed has the steps that it began with, and no budget.
    """
    allowed, taking = budget_seconds(settings.budget or ""), 0.0
    for phase, made in trainings(planned, seeds(settings.seed, settings.seeds)):
        if made is not None:
            taking += phase.makes.course.num_updates * pace(*made, _SECONDS).update
    steps = {}
    for phase in planned.phases:
        course: Course | None = phase.makes and phase.makes.course
        if course is not None:
            updates = max(1, int(course.num_updates * allowed / taking))
            option = "steps" if phase.name == "teacher" else "student_steps"
            # A student's updates may be longer than its control's: both get the longer one's.
            steps[option] = max(steps.get(option, 0), updates * course.steps_per_update)
    words = ", ".join(f"--{name.replace('_', '-')} {number}" for name, number in steps.items())
    print(f"--budget {settings.budget}: {words} (a preset's would take {taking:.0f} s)", flush=True)
    return replace(settings, budget=None, **steps)
