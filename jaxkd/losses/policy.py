"""Policy distillation: how far the student's action distribution is from the teacher's."""

from collections.abc import Callable
from typing import Any

import jax

from jaxkd import check
from jaxkd.base import Batch, Context, LossTerm, Outputs
from jaxkd.losses.combine import stateless


def forward_kl(temperature: float | jax.Array | Callable = 1.0) -> LossTerm:
    """KL(teacher || student), mass-covering: T^2 KL(p_T^(1/T) || p_S^(1/T)) (Hinton et al. 2015).

    Rusu et al. (2015) sharpen the teacher only: `networks.temper(teacher, 0.01)` with `forward_kl()`.

    Args:
        temperature: of both, > 0; a number or a schedule `update -> temperature`. The factor T^2 keeps the gradient's size.

    Returns:
        a term, [L, N], nats; reads `batch.teacher.policy`.

    >>> forward_kl(temperature=2.0).init(None, None)
    ()
    """
    check.number("temperature", temperature, low=0, above=True)

    def loss(student, batch, context):
        ours, theirs, squared = _tempered(temperature, student, batch, context)
        return squared * theirs.kl(ours)

    return stateless(loss)


def reverse_kl(temperature: float | jax.Array | Callable = 1.0) -> LossTerm:
    """KL(student || teacher), mode-seeking: T^2 KL(p_S^(1/T) || p_T^(1/T)) (Agarwal et al. 2024, GKD at beta = 1).

    Args:
        temperature: as in `forward_kl`.

    >>> reverse_kl().init(None, None)
    ()
    """
    check.number("temperature", temperature, low=0, above=True)

    def loss(student, batch, context):
        ours, theirs, squared = _tempered(temperature, student, batch, context)
        return squared * ours.kl(theirs)

    return stateless(loss)


def _tempered(temperature: Any, student: Outputs, batch: Batch, context: Context) -> tuple:
    """Both policies at the temperature, and its square."""
    t: Any = temperature(context.update) if callable(temperature) else temperature
    return student.policy.temper(t), batch.teacher.policy.temper(t), t**2
