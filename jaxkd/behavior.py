"""Who acts: factories of `Behavior`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import Behavior


def student_acts() -> Behavior:
    """The student acts, sampled: what it learns from is what it will meet.

    >>> student_acts().needs_teacher
    False
    """

    def act(key, student, teacher, context):
        return student.policy.sample(key)

    return Behavior(act)


def teacher_acts() -> Behavior:
    """The teacher acts, sampled (Rusu et al. 2015: the student never acts)."""

    def act(key, student, teacher, context):
        return teacher.policy.sample(key)

    return Behavior(act, needs_teacher=True)


def mixture(beta: float | jax.Array | Callable) -> Behavior:
    """In every step of every environment the teacher acts with probability `beta`, else the student (Ross et al. 2011).

    Args:
        beta: a number in [0, 1], or a schedule `update -> beta` (DAgger often does best with 1 at update 0 and 0 after).

    >>> mixture(lambda update: update == 0).needs_teacher
    True
    """
    check.number("beta", beta, low=0, high=1)

    def act(key, student, teacher, context):
        key_who, key_teacher, key_student = jax.random.split(key, 3)
        ours = student.policy.sample(key_student)
        theirs = teacher.policy.sample(key_teacher)
        probability = beta(context.update) if callable(beta) else beta
        lead = ours.shape[:1]
        who = jax.random.bernoulli(key_who, jnp.broadcast_to(jnp.asarray(probability, jnp.float32), lead))
        return jnp.where(who.reshape(lead + (1,) * (ours.ndim - 1)), theirs, ours)

    return Behavior(act, needs_teacher=True)
