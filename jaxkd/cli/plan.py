"""What `jaxkd distill` is about to do, known to fit together before anything is compiled."""

import os
from typing import Any, NamedTuple

import jax

from jaxkd import check
from jaxkd.base import Algorithm, Env, Policy, UsageError
from jaxkd.cli import work
from jaxkd.cli.phases import Phase, check_order
from jaxkd.cli.settings import Distill
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


def plan(settings: Distill, device: Any) -> Plan:
    """The phases of a distillation.

    Raises:
        UsageError, ArtifactError: everything that can be refused, refused now.
    """
    available = _memory(device)
    _check_numbers(settings, available)
    method, chosen = find_method(settings.method), _preset(settings)
    env = make_env(settings.env, chosen)
    if settings.teacher:
        teacher, params = load_policy(settings.teacher)
        check.fits("teacher", teacher, env)
    else:
        teacher, params = teacher_network(env, chosen), None
    size = actor_size(teacher, _shapes(teacher), env.obs_spec)
    student = student_network(env, chosen, settings.student, size, method)
    learners = (student,) if settings.teacher else (teacher, student)
    _check_networks(settings, chosen, learners, available)
    parts = _Parts(env, method_env(env, method), teacher, params, student)
    phases = _phases(settings, chosen, parts)
    check_order(phases)
    return Plan(chosen, phases)


def _phases(settings: Distill, chosen: Preset, parts: _Parts) -> list[Phase]:
    """Train or load the teacher, distil it, train the same network without it, compare."""
    method, env, length = find_method(settings.method), parts.env, chosen.unroll_length

    def course(option: str, where: Env, length: int, made: tuple[Algorithm, int]) -> work.Course:
        steps_per_update = where.num_envs * length
        _check_steps(settings, option, steps_per_update)
        return work.Course(*made, steps_per_update, settings.lanes)

    if parts.teacher_params is not None:
        teach = work.load(env, parts.teacher, parts.teacher_params, folder="teachers")
    else:
        taught = course("steps", env, length, teaching(env, parts.teacher, chosen))
        teach = work.learn("teacher", env, parts.teacher, taught, folder="teachers")
    distilled = course(
        "student_steps",
        parts.student_env,
        rollout_length(parts.student_env, chosen, method),
        distillation(parts.student_env, parts.student, parts.teacher, chosen, method),
    )
    alone = course(
        "student_steps", env, length, teaching(env, parts.student, chosen, chosen.student_steps)
    )
    distil = work.learn("student", env, parts.student, distilled, folder="students")
    control = work.learn("control", env, parts.student, alone)
    evaluate = work.evaluate(env, _COMPARED, settings.episodes)
    compare = work.compare(env, parts.student_env, settings.episodes, length)
    return [
        Phase("teacher", reads=(), leaves="teacher", work=teach),
        Phase(
            "student",
            reads=("teacher",) if method.needs_teacher else (),
            leaves="student",
            work=distil,
        ),
        Phase("control", reads=(), leaves="control", work=control),
        Phase("evaluate", reads=_COMPARED, leaves="results", work=evaluate),
        Phase("compare", reads=("teacher", "student", "results"), leaves="summary", work=compare),
    ]


def _preset(settings: Distill) -> Preset:
    """The environment's, with what was asked for."""
    chosen = preset(settings.env)
    return chosen._replace(
        sticky=chosen.sticky if settings.sticky is None else settings.sticky,
        num_steps=settings.steps or chosen.num_steps,
        student_steps=settings.student_steps or chosen.student_steps,
    )


# --- refusals -----------------------------------------------------------------------------------


def _check_numbers(settings: Distill, available: int) -> None:
    """What can be refused without making an environment, which takes a second."""
    for name in _COUNTS:
        value = getattr(settings, name)
        if value is not None:
            check.count(f"--{name.replace('_', '-')}", value)
    for name in ("steps", "student_steps"):
        if (getattr(settings, name) or 0) > _MOST_STEPS:
            raise UsageError(
                f"--{name.replace('_', '-')} {getattr(settings, name)} is more than any machine "
                f"can do; at most {_MOST_STEPS}."
            )
    check.number("--sticky", settings.sticky, low=0, high=1)
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
            f"{_in_words(results)}, and there are {_in_words(available)}. Take fewer."
        )


def _check_steps(settings: Distill, option: str, steps_per_update: int) -> None:
    """Steps that the user gave are at least those of one update; a preset's are."""
    given = getattr(settings, option)
    if given is not None and given < steps_per_update:
        raise UsageError(
            f"--{option.replace('_', '-')} {given} is less than one update, "
            f"which takes {steps_per_update} environment steps."
        )


def _check_networks(
    settings: Distill, chosen: Preset, learners: tuple[Policy, ...], available: int
) -> None:
    """Refuses networks that cannot fit: the least that training them takes.

    It is far from what a run takes; it is known in no time, and tells a slip from a wish.
    """
    rows = chosen.num_envs * chosen.unroll_length // chosen.num_minibatches
    at_once = settings.lanes or settings.seeds
    for policy in learners:
        leaves = jax.tree.leaves(_shapes(policy))
        kept = settings.seeds * _ADAM * sum(x.size * x.dtype.itemsize for x in leaves)
        # A dense layer has as many activations as biases; the gradient needs a minibatch of them.
        activations = at_once * rows * sum(x.size for x in leaves if x.ndim == 1) * 4
        if kept + activations > available:
            raise UsageError(
                f"--seeds {settings.seeds} with --student {settings.student} take at least "
                f"{_in_words(kept + activations)}, and there are {_in_words(available)}. "
                "Take fewer seeds (or --lanes), or a smaller student."
            )


def _in_words(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.3g} GiB"


def _memory(device: Any) -> int:
    """Bytes of the device; of the machine, where the device does not say."""
    stated = (device.memory_stats() or {}).get("bytes_limit")
    return stated or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _shapes(policy: Policy) -> Any:
    return jax.eval_shape(policy.init, jax.random.key(0))
