"""What `distill` and `teach` are about to do, known to fit together before anything is compiled."""

import math
import os
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

from jaxkd import check
from jaxkd.base import Algorithm, Env, Policy, UsageError
from jaxkd.cli import grid, work
from jaxkd.cli.overrides import override
from jaxkd.cli.phases import Phase, check_order
from jaxkd.cli.settings import Distill, Teach
from jaxkd.evaluate import actor_size
from jaxkd.policies import load_policy
from jaxkd.presets import (
    Preset,
    distillation,
    find_method,
    make_env,
    method_env,
    preset,
    rollout_length,
    student_network,
    teacher_network,
    teaching,
)
from jaxkd.presets.settings import reinforcement
from jaxkd.recipes import ppo

_COUNTS = ("seeds", "lanes", "episodes", "steps", "student_steps")
_NEXT_STUDENT = re.compile(r",(?!\d+(?:,|$))")  # a plain number is a layer of the one before
_ADAM = 3  # parameters and two moments of each: what a training keeps at the least
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
_BUDGET = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([smh]?)")
_MOST_STEPS = 10**15  # of one seed: a year at 30 million a second
_EPISODE_BYTES = 12  # return, length and discounted return


class Plan(NamedTuple):
    """The phases of a run, and the preset they come from."""

    preset: Preset
    phases: list[Phase]
    num_sizes: int = 1  # of students, each with a control


class _Parts(NamedTuple):
    """Who learns where."""

    env: Env
    student_env: Env  # the method's
    teacher: Policy
    teacher_params: Any  # of the file, shared by all seeds; None: every seed trains its own
    students: list[Policy]


def plan(settings: Distill | Teach, device: Any) -> Plan:
    """The phases of a command.

    Raises:
        UsageError, ArtifactError: everything that can be refused, refused now.
    """
    available = available_memory(device)
    _check_numbers(settings, available)
    chosen = _preset(settings)
    num_sizes = 1
    if isinstance(settings, Distill):
        phases = _distilling(settings, chosen, available)
        num_sizes = len(_NEXT_STUDENT.split(settings.student))
    else:
        phases = _teaching(settings, chosen, available)
    check_order(phases)
    return Plan(chosen, phases, num_sizes)


def _teaching(settings: Teach, chosen: Preset, available: int) -> list[Phase]:
    """Train a teacher, play with it."""
    env, swept = make_env(settings.env, chosen), grid.points(settings.grid)
    teacher = teacher_network(env, chosen)
    _check_memory(settings, chosen, env, (teacher,), available, len(swept))
    known = grid.sweepable("the teacher's training", ppo, reinforcement, env, chosen)
    make = partial(_taught, env, teacher)
    taught = _course(settings, "steps", env, chosen.unroll_length, *make(chosen), swept)
    taught = _swept(taught, make, known, chosen)
    learn = work.learn("teacher", env, teacher, taught, folder="teachers")
    made = Phase("teacher", (), "teacher", learn, work.Made(teacher, taught))
    phases, names = _by_point(made, len(swept))
    return [
        *phases,
        Phase("evaluate", names, "results", work.evaluate(env, names, settings.episodes)),
        Phase("rank", ("results",), "summary", work.rank(env, settings.episodes)),
    ]


def _taught(env: Env, policy: Policy, preset: Preset, **more: Any) -> tuple[Algorithm, int]:
    return teaching(env, policy, preset, None, **more)


def _distilling(settings: Distill, chosen: Preset, available: int) -> list[Phase]:
    """What fits together of a distillation."""
    method = find_method(settings.method)
    env = make_env(settings.env, chosen)
    if settings.teacher:
        teacher, params = load_policy(settings.teacher)
        check.fits("teacher", teacher, env)
    else:
        teacher, params = teacher_network(env, chosen), None
    size = actor_size(teacher, _shapes(teacher), env.obs_spec, num_envs=env.num_envs)
    asked = _NEXT_STUDENT.split(settings.student)
    students = [student_network(env, chosen, each, size, method) for each in asked]
    _check_students(settings, asked)
    learners = (*students,) if settings.teacher else (teacher, *students)
    swept = len(grid.points(settings.grid))
    _check_memory(settings, chosen, env, learners, available, swept)
    parts = _Parts(env, method_env(env, method), teacher, params, students)
    return _phases(settings, chosen, parts)


def _phases(settings: Distill, chosen: Preset, parts: _Parts) -> list[Phase]:
    """Train or load the teacher, distil it, train the same networks without it, compare."""
    env = parts.env
    phases, students, controls = [_teacher(settings, chosen, parts)], [], []
    for number, student in enumerate(parts.students, 1):
        taught, names = _by_point(*_student(settings, chosen, parts, student, number))
        alone = _control(settings, chosen, env, student, number)
        phases += [*taught, alone]
        students += names
        controls.append(alone.leaves)
    # Each control beside its student; the students of a grid share one.
    rows = [name for pair in zip(students, controls, strict=False) for name in pair]
    rows = ["teacher", *rows, *students[len(controls) :]]
    evaluate = work.evaluate(env, rows, settings.episodes)
    compare = work.compare(
        env, parts.student_env, students, settings.episodes, chosen.unroll_length
    )
    return [
        *phases,
        Phase("evaluate", (*rows,), "results", evaluate),
        Phase("compare", ("results", "teacher", *students), "summary", compare),
    ]


def _teacher(settings: Distill, chosen: Preset, parts: _Parts) -> Phase:
    env, policy, params = parts.env, parts.teacher, parts.teacher_params
    if params is not None:
        source = str(settings.teacher)
        load = work.load(env, policy, params, source=source, folder="teachers")
        return Phase("teacher", (), "teacher", load, work.Made(policy, None, params))
    made = teaching(env, policy, chosen)
    course = _course(settings, "steps", env, chosen.unroll_length, *made)
    learn = work.learn("teacher", env, policy, course, folder="teachers")
    return Phase("teacher", (), "teacher", learn, work.Made(policy, course))


def _student(
    settings: Distill, chosen: Preset, parts: _Parts, student: Policy, number: int
) -> tuple[Phase, int]:
    """A student's phase, and how many points it is swept over."""
    method, env, swept = find_method(settings.method), parts.student_env, grid.points(settings.grid)

    def make(preset: Preset, **more: Any) -> tuple[Algorithm, int]:
        return distillation(env, student, parts.teacher, preset, method, **more)

    length = rollout_length(env, chosen, method)
    course = _course(settings, "student_steps", env, length, *make(chosen), swept)
    known = grid.sweepable(settings.method, method.build, method.settings, env, chosen)
    course = _swept(course, make, known, chosen)
    name, taught_by = _numbered("student", number), ("teacher",) if method.needs_teacher else ()
    learn = work.learn(name, parts.env, student, course, folder=_numbered("students", number))
    return Phase(name, taught_by, name, learn, work.Made(student, course)), len(swept)


def _control(settings: Distill, chosen: Preset, env: Env, student: Policy, number: int) -> Phase:
    name, made = _numbered("control", number), teaching(env, student, chosen, chosen.student_steps)
    course = _course(settings, "student_steps", env, chosen.unroll_length, *made)
    learn = work.learn(name, env, student, course)
    return Phase(name, (), name, learn, work.Made(student, course))


def _numbered(name: str, number: int) -> str:
    """The first one's name is the name."""
    return name if number == 1 else f"{name}-{number}"


def _by_point(made: Phase, num_points: int) -> tuple[list[Phase], tuple[str, ...]]:
    """The phases of one that is swept, and what they leave, by point."""
    if num_points == 1:
        return [made], (made.leaves,)
    together = f"{made.leaves}, all points"
    names = tuple(_numbered(made.leaves, number) for number in range(1, num_points + 1))
    apart = [
        Phase(f"{name} of the grid", (together,), name, work.pick(number))
        for number, name in enumerate(names)
    ]
    return [made._replace(leaves=together), *apart], names


def _course(
    settings: Distill | Teach,
    option: str,
    env: Env,
    length: int,
    algorithm: Algorithm,
    num_updates: int,
    points: list[grid.Point] | None = None,
) -> work.Course:
    """A training by updates of so many steps of `env`."""
    steps_per_update = env.num_envs * length
    _check_steps(settings, option, steps_per_update)
    points = points or [{}]
    mesh = work.mesh_of(settings.devices, settings.seeds * len(points), env.num_envs)
    return work.Course(algorithm, num_updates, steps_per_update, settings.lanes, points, mesh)


def _swept(
    course: work.Course, make: Callable, known: grid.Sweepable, chosen: Preset
) -> work.Course:
    """The course with an algorithm that takes a point of its grid; as it is where there is none.

    Args:
        make: (preset, **keywords) -> (Algorithm, num_updates).
    """
    if not course.points[0]:
        return course
    grid.check_names(course.points[0], known)

    def build(preset: Preset, **more: Any) -> Algorithm:
        return make(preset, **more)[0]

    for point in course.points:  # a recipe refuses a number; as a tracer it would pass
        algorithm = grid.swept(build, known, chosen, point)
    return course._replace(algorithm=algorithm)


def _preset(settings: Distill | Teach) -> Preset:
    """The environment's, with the values and steps that were asked for."""
    chosen = override(preset(settings.env), settings.set)
    student_steps = getattr(settings, "student_steps", None)
    return chosen._replace(
        num_steps=settings.steps or chosen.num_steps,
        student_steps=student_steps or chosen.student_steps,
    )


# --- refusals -----------------------------------------------------------------------------------


def _check_numbers(settings: Distill | Teach, available: int) -> None:
    """What can be refused without making an environment, which takes a second."""
    for name in _COUNTS:
        value = getattr(settings, name, None)
        if value is not None:
            check.count(f"--{name.replace('_', '-')}", value)
    for name in ("steps", "student_steps"):
        if (getattr(settings, name, None) or 0) > _MOST_STEPS:
            raise UsageError(
                f"--{name.replace('_', '-')} {getattr(settings, name)} is more than any machine "
                f"can do; at most {_MOST_STEPS}."
            )
    if settings.budget is not None:
        budget_seconds(settings.budget)
    if settings.budget is not None and (settings.steps or getattr(settings, "student_steps", 0)):
        raise UsageError("--budget finds the steps. Leave out --steps and --student-steps.")
    if not 0 <= (settings.checkpoint_every or 0) < math.inf:
        raise UsageError(
            f"--checkpoint-every takes seconds, 0 or more, got {settings.checkpoint_every}."
        )
    if not 0 <= settings.seed < 2**32:
        raise UsageError(f"--seed must be in [0, 2**32), got {settings.seed}.")
    if settings.lanes is not None and settings.lanes > settings.seeds:
        raise UsageError(
            f"--lanes {settings.lanes} of --seeds {settings.seeds}: no more seeds can be computed "
            "at once than there are."
        )
    results = settings.seeds * settings.episodes * _EPISODE_BYTES
    if results > available:
        raise UsageError(
            f"the results of --seeds {settings.seeds} x --episodes {settings.episodes} alone take "
            f"{in_words(results)}, and there are {in_words(available)}. Take fewer."
        )


def budget_seconds(text: str) -> float:
    """Of "60s", "5m" or "1h".

    Raises:
        UsageError: it is no time.

    >>> budget_seconds("1.5m")
    90.0
    """
    found = _BUDGET.fullmatch(text)
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not seconds:
        raise UsageError(f"--budget takes a time such as 60s, 5m or 1h, got {text!r}.")
    return seconds


def _check_students(settings: Distill, asked: list[str]) -> None:
    if len(set(asked)) < len(asked):
        raise UsageError(f"--student {settings.student} names one twice.")
    if len(asked) > 1 and settings.grid:
        raise UsageError(
            "several --student and a --grid do not go together. Take one student a grid."
        )


def _check_steps(settings: Distill | Teach, option: str, steps_per_update: int) -> None:
    """Steps that the user gave are at least those of one update; a preset's are."""
    given = getattr(settings, option)
    if given is not None and given < steps_per_update:
        raise UsageError(
            f"--{option.replace('_', '-')} {given} is less than one update, "
            f"which takes {steps_per_update} environment steps."
        )


def _check_memory(
    settings: Distill | Teach,
    chosen: Preset,
    env: Env,
    learners: tuple[Policy, ...],
    available: int,
    num_points: int,
) -> None:
    """Refuses what cannot fit: the least that training takes.

    It is far from what a run takes; it is known in no time, and tells a slip from a wish.
    """
    steps = chosen.num_envs * chosen.unroll_length
    observations = steps * _bytes(env.obs_spec)
    trained = settings.seeds * num_points
    at_once = settings.lanes or trained
    for policy in learners:
        params = _shapes(policy)
        kept = trained * _ADAM * _bytes(params)
        # A dense layer has as many activations as biases; the gradient needs a minibatch of them.
        biases = sum(x.size for x in jax.tree.leaves(params) if x.ndim == 1)
        activations = steps // chosen.num_minibatches * biases * 4
        needed = kept + at_once * (observations + activations)
        if needed > available:
            student = getattr(settings, "student", "")
            raise UsageError(
                f"--seeds {settings.seeds}{student and f' with --student {student}'} take at least "
                f"{in_words(needed)}, and there are {in_words(available)}. "
                f"Take fewer seeds (or --lanes){student and ', or a smaller student'}."
            )


def _bytes(shapes: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))


def in_words(num_bytes: int) -> str:
    size, unit = (2**30, "GiB") if num_bytes >= 2**29 else (2**20, "MiB")
    return f"{num_bytes / size:.3g} {unit}"


def available_memory(device: Any) -> int:
    """Bytes of the device; of the machine, where the device does not say."""
    stated = (device.memory_stats() or {}).get("bytes_limit")
    return stated or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _shapes(policy: Policy) -> Any:
    return jax.eval_shape(policy.init, jax.random.key(0))
