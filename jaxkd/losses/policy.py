"""Policy distillation: how far the student's action distribution is from the teacher's."""

from collections.abc import Callable

import jax

from jaxkd import check
from jaxkd.base import LossTerm
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
    return _kl(temperature, lambda student, teacher: teacher.kl(student))


def reverse_kl(temperature: float | jax.Array | Callable = 1.0) -> LossTerm:
    """KL(student || teacher), mode-seeking: T^2 KL(p_S^(1/T) || p_T^(1/T)) (Agarwal et al. 2024, GKD at beta = 1).

    Args:
        temperature: as in `forward_kl`.

    >>> reverse_kl().init(None, None)
    ()
    """
    return _kl(temperature, lambda student, teacher: student.kl(teacher))


def _kl(temperature, divergence) -> LossTerm:
    check.number("temperature", temperature, low=0, above=True)

    def loss(student, batch, context):
        t = temperature(context.update) if callable(temperature) else temperature
        return t**2 * divergence(student.policy.temper(t), batch.teacher.policy.temper(t))

    return stateless(loss)
