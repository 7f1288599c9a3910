"""What `distill` and `teach` are about to do, known to fit together before anything is compiled."""

import math
import os
from typing import Any, NamedTuple

import jax

from jaxkd import check
from jaxkd.base import Algorithm, Env, Policy, UsageError
from jaxkd.cli import work
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

_COUNTS = ("seeds", "lanes", "episodes", "steps", "student_steps")
_COMPARED = ("teacher", "student", "control")  # the rows of the table
_ADAM = 3  # parameters and two moments of each: what a training keeps at the least
_MOST_STEPS = 10**15  # of one seed: a year at 30 million a second
_EPISODE_BYTES = 12  # return, length and discounted return


class Plan(NamedTuple):
    """The phases of a run, and the preset they come from."""

    preset: Preset
    phases: list[Phase]


class _Parts(NamedTuple):
    """Who learns where."""

    env: Env
    student_env: Env  # the method's
    teacher: Policy
    teacher_params: Any  # of the file, shared by all seeds; None: every seed trains its own
    student: Policy


def plan(settings: Distill | Teach, device: Any) -> Plan:
    """The phases of a command.

    Raises:
        UsageError, ArtifactError: everything that can be refused, refused now.
    """
    available = available_memory(device)
    _check_numbers(settings, available)
    chosen = _preset(settings)
    if isinstance(settings, Distill):
        phases = _distilling(settings, chosen, available)
    else:
        phases = _teaching(settings, chosen, available)
    check_order(phases)
    return Plan(chosen, phases)


def _teaching(settings: Teach, chosen: Preset, available: int) -> list[Phase]:
    """Train a teacher, play with it."""
    env = make_env(settings.env, chosen)
    teacher = teacher_network(env, chosen)
    _check_memory(settings, chosen, env, (teacher,), available)
    taught = _course(settings, "steps", env, chosen.unroll_length, teaching(env, teacher, chosen))
    learn = work.learn("teacher", env, teacher, taught, folder="teachers")
    evaluate = work.evaluate(env, ("teacher",), settings.episodes)
    rank = work.rank(env, settings.episodes)
    return [
        Phase("teacher", (), "teacher", learn, work.Made(teacher, taught)),
        Phase("evaluate", ("teacher",), "results", evaluate),
        Phase("rank", ("results",), "summary", rank),
    ]


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
    student = student_network(env, chosen, settings.student, size, method)
    learners = (student,) if settings.teacher else (teacher, student)
    _check_memory(settings, chosen, env, learners, available)
    parts = _Parts(env, method_env(env, method), teacher, params, student)
    return _phases(settings, chosen, parts)


def _phases(settings: Distill, chosen: Preset, parts: _Parts) -> list[Phase]:
    """Train or load the teacher, distil it, train the same network without it, compare."""
    method, env, length = find_method(settings.method), parts.env, chosen.unroll_length

    if parts.teacher_params is not None:
        taught, source = None, str(settings.teacher)
        teach = work.load(
            env, parts.teacher, parts.teacher_params, source=source, folder="teachers"
        )
    else:
        made = teaching(env, parts.teacher, chosen)
        taught = _course(settings, "steps", env, length, made)
        teach = work.learn("teacher", env, parts.teacher, taught, folder="teachers")
    distilled = _course(
        settings,
        "student_steps",
        parts.student_env,
        rollout_length(parts.student_env, chosen, method),
        distillation(parts.student_env, parts.student, parts.teacher, chosen, method),
    )
    made = teaching(env, parts.student, chosen, chosen.student_steps)
    alone = _course(settings, "student_steps", env, length, made)
    distil = work.learn("student", env, parts.student, distilled, folder="students")
    control = work.learn("control", env, parts.student, alone)
    evaluate = work.evaluate(env, _COMPARED, settings.episodes)
    compare = work.compare(env, parts.student_env, settings.episodes, length)
    taught_by = ("teacher",) if method.needs_teacher else ()
    made = [
        work.Made(parts.teacher, taught, parts.teacher_params),
        work.Made(parts.student, distilled),
        work.Made(parts.student, alone),
    ]
    return [
        Phase("teacher", (), "teacher", teach, made[0]),
        Phase("student", taught_by, "student", distil, made[1]),
        Phase("control", (), "control", control, made[2]),
        Phase("evaluate", _COMPARED, "results", evaluate),
        Phase("compare", ("teacher", "student", "results"), "summary", compare),
    ]


def _course(
    settings: Distill | Teach, option: str, env: Env, length: int, made: tuple[Algorithm, int]
) -> work.Course:
    """A training of `made` by updates of so many steps of `env`."""
    steps_per_update = env.num_envs * length
    _check_steps(settings, option, steps_per_update)
    return work.Course(*made, steps_per_update, settings.lanes)


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
) -> None:
    """Refuses what cannot fit: the least that training takes.

    It is far from what a run takes; it is known in no time, and tells a slip from a wish.
    """
    steps = chosen.num_envs * chosen.unroll_length
    observations = steps * _bytes(env.obs_spec)
    at_once = settings.lanes or settings.seeds
    for policy in learners:
        params = _shapes(policy)
        kept = settings.seeds * _ADAM * _bytes(params)
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
