"""Who acts: factories of `Behavior`.

A sampled or greedy student or teacher, or a choice between two in every step of every environment.
What the student's `acting` policy says is not what a mixed behaviour draws from.

Legend of shapes: `B` environments, `A` actions, `D` action dimensions.
"""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import Behavior, UsageError
from jaxkd.description import described
from jaxkd.distributions import legal

_WHO = zlib.crc32(b"who acts")  # beside the numbers of steps, of which a rollout makes its keys


@described
def student_acts(*, greedy: bool = False) -> Behavior:
    """The student acts: what it learns from is what it will meet.

    Args:
        greedy: the mode of its policy; False samples.

    >>> student_acts().needs_teacher
    False
    """

    def act(key, student, teacher, context):
        return student.policy.mode() if greedy else student.policy.sample(key)

    return Behavior(act)


@described
def teacher_acts(*, greedy: bool = False) -> Behavior:
    """The teacher acts (Rusu et al. 2015: the student never acts).

    Args:
        greedy: the mode of its policy; False samples.

    >>> teacher_acts(greedy=True).needs_teacher
    True
    """

    def act(key, student, teacher, context):
        return teacher.policy.mode() if greedy else teacher.policy.sample(key)

    return Behavior(act, needs_teacher=True)


@described
def random_acts() -> Behavior:
    """Every legal action is equally likely: uniform over those not masked, or over [-1, 1]^D.

    A mask is a logit of -1e9 or -inf (`distributions.legal`).

    >>> random_acts().needs_teacher
    False
    """

    def act(key, student, teacher, context):
        return _anything(key, student.policy)

    return Behavior(act)


@described
def mixture(beta: float | jax.Array | Callable, *, every: str = "step") -> Behavior:
    """The teacher acts with probability `beta`, else the student, both sampled (Ross et al. 2011).

    It is drawn anew in every step of every environment, or once a rollout in each of them.

    Args:
        beta: a number in [0, 1], or a schedule `update -> beta` (DAgger often does best with 1 at
            update 0 and 0 after).
        every: "step", or "rollout": whole sequences are the teacher's or the student's (Agarwal et
            al. 2024, GKD, where 1 - beta is their lambda).

    >>> mixture(lambda update: update == 0).needs_teacher
    True
    """
    check.number("beta", beta, low=0, high=1)
    if every not in ("step", "rollout"):
        raise UsageError(f"every must be 'step' or 'rollout', got {every!r}.")

    def act(key, student, teacher, context):
        key_who, key_teacher, key_student = jax.random.split(key, 3)
        if every == "rollout":
            key_who = jax.random.fold_in(context.key, _WHO)
        teachers = teacher.policy.sample(key_teacher)
        students = student.policy.sample(key_student)
        return _choose(_chance(key_who, beta, students, context), teachers, students)

    return Behavior(act, needs_teacher=True)


@described
def epsilon_greedy(
    epsilon: float | jax.Array | Callable, behavior: Behavior | None = None
) -> Behavior:
    """A random legal action with probability `epsilon`, else what `behavior` does.

    It is drawn anew in every step of every environment.

    Args:
        epsilon: a number in [0, 1], or a schedule `update -> epsilon`.
        behavior: default the student, greedy; `teacher_acts(greedy=True)` with 0.05 recorded the
            data of policy distillation (Rusu et al. 2015).

    >>> epsilon_greedy(0.05, teacher_acts(greedy=True)).needs_teacher
    True
    """
    check.number("epsilon", epsilon, low=0, high=1)
    behavior = student_acts(greedy=True) if behavior is None else behavior
    check.kind(
        "behavior", behavior, Behavior, "a Behavior (jaxkd.behavior.teacher_acts and others)"
    )

    def act(key, student, teacher, context):
        key_who, key_random, key_behavior = jax.random.split(key, 3)
        usual = behavior.act(key_behavior, student, teacher, context)
        explores = _chance(key_who, epsilon, usual, context)
        return _choose(explores, _anything(key_random, student.policy), usual)

    return Behavior(act, behavior.needs_teacher)


@described
def guide_then_student(horizon: float | jax.Array | Callable) -> Behavior:
    """The teacher acts in the first `horizon` steps of every episode, then the student.

    Both are sampled (JSRL, Uchendu et al. 2022).

    Args:
        horizon: steps, or a function `(update, episode_return) -> steps` of the updates completed
            and the mean return of each environment's last episode (-inf before the first has
            ended), so that the guide can retreat with time or with success.

    >>> shorter = lambda update, episode_return: jnp.maximum(100 - update, 0)
    >>> guide_then_student(shorter).needs_teacher
    True
    """
    check.number("horizon", horizon, low=0)

    def act(key, student, teacher, context):
        key_teacher, key_student = jax.random.split(key)
        steps: Any = horizon
        with jax.numpy_dtype_promotion("standard"):  # floats, and numbers of updates and steps
            if callable(horizon):
                steps = horizon(context.update, context.episode_return)
            guided = context.episode_step < steps
        return _choose(
            guided,
            teacher.policy.sample(key_teacher),
            student.policy.sample(key_student),
        )

    return Behavior(act, needs_teacher=True)


@described
def tempered(temperature: float | jax.Array, behavior: Behavior) -> Behavior:
    """`behavior` with both policies tempered: above 1 bolder, below 1 nearer to their modes.

    What is masked stays masked.

    Args:
        temperature: > 0; of a student that is a Q network it is that of Boltzmann exploration.

    >>> tempered(0.1, student_acts()).needs_teacher
    False
    """
    check.number("temperature", temperature, low=0, above=True)

    def act(key, student, teacher, context):
        def warmer(outputs):
            return outputs and outputs._replace(policy=outputs.policy.temper(temperature))

        return behavior.act(key, warmer(student), warmer(teacher), context)

    return Behavior(act, behavior.needs_teacher)


def _anything(key: jax.Array, policy: Any) -> jax.Array:
    """A legal action, each as likely as any other: int32 [B] or float32 [B, D]."""
    if hasattr(policy, "logits"):
        allowed = jnp.where(legal(policy.logits), 0.0, -jnp.inf)
        return jax.random.categorical(key, allowed).astype(jnp.int32)
    like = policy.mode()
    return jax.random.uniform(key, like.shape, like.dtype, -1.0, 1.0)


def _chance(key: jax.Array, probability: Any, action: jax.Array, context: Any) -> jax.Array:
    """True with `probability` (a number or a schedule) in every environment, [B]."""
    if callable(probability):
        with jax.numpy_dtype_promotion("standard"):  # a float times the number of updates
            probability = probability(context.update)
    return jax.random.bernoulli(
        key, jnp.broadcast_to(jnp.asarray(probability, jnp.float32), action.shape[:1])
    )


def _choose(who: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """Whole actions [B, ...]: of `a` where `who` [B], else of `b`."""
    return jnp.where(who.reshape(who.shape + (1,) * (a.ndim - 1)), a, b)
