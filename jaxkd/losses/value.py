"""Value distillation."""

import jax.numpy as jnp

from jaxkd.base import LossTerm
from jaxkd.losses.combine import stateless


def value_mse() -> LossTerm:
    """(V_T(s) - V_S(s))^2: the student's value regressed on the teacher's.

    The teacher's value is of the teacher's policy and reward scale: a student that acts differently has another one.

    Returns:
        a term, [L, N]; reads `batch.teacher.value`.

    >>> value_mse().init(None, None)
    ()
    """

    def loss(student, batch):
        return jnp.square(student.value - batch.teacher.value)

    return stateless(loss)
