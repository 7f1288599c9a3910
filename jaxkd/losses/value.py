"""Value distillation."""

import jax
import jax.numpy as jnp

from jaxkd.base import LossTerm, Outputs, UsageError
from jaxkd.losses.combine import stateless


def value_of(outputs: Outputs, who: str, stream: str = "") -> jax.Array:
    """The value [L, N] of one reward stream, or an error that says how `who` gets a head for it."""
    head = (outputs.extra or {}).get(stream, ()) if stream else outputs.value
    if not hasattr(head, "shape"):
        fix = f"extra=({stream!r},) in its network" if stream else "let its module return (policy parameters, value)"
        raise UsageError(f"it reads a value, but the {who} has no value head{f' for stream {stream!r}' if stream else ''}: {fix}.")
    return head


def value_mse() -> LossTerm:
    """(V_T(s) - V_S(s))^2: the student's value regressed on the teacher's.

    The teacher's value is of the teacher's policy and reward scale: a student that acts differently has another one.

    Returns:
        a term, [L, N]; reads `batch.teacher.value`.

    >>> value_mse().init(None, None)
    ()
    """

    def loss(student, batch):
        return jnp.square(value_of(student, "student") - value_of(batch.teacher, "teacher"))

    return stateless(loss)
