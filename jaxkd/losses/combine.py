"""Combinators: how a function becomes a term, and how much and where a term counts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import Context, LossTerm, UsageError


def at(value: Any, context: Context) -> Any:
    """A number as it is, a schedule `update -> value` at this update."""
    return value(context.update) if callable(value) else value


def stateless(fn: Callable) -> LossTerm:
    """A term without parameters from `fn(student, batch)` or `fn(student, batch, context)` -> [L, N].

    `distill` accepts such a function bare.

    >>> term = stateless(lambda student, batch: -student.policy.entropy())
    >>> term.init(None, None)
    ()
    """
    if not callable(fn):
        raise UsageError(
            f"a loss is a function (student, batch[, context]) -> [L, N] or a LossTerm, got {type(fn).__name__}."
        )
    names = getattr(getattr(fn, "__code__", None), "co_varnames", ())[
        : getattr(getattr(fn, "__code__", None), "co_argcount", 2)
    ]

    def loss(params, student, batch, context):
        return fn(student, batch, context) if len(names) > 2 else fn(student, batch)

    return LossTerm(lambda key, spec: (), loss)


def scale(value: float | jax.Array | Callable, term: LossTerm | Callable) -> LossTerm:
    """`term` times `value`: a number, or a schedule `update -> value` such as `optax.linear_schedule(1.0, 0.0, 100)`.

    >>> import optax
    >>> from jaxkd.losses import forward_kl
    >>> term = scale(optax.linear_schedule(2.0, 0.0, 100), forward_kl())      # kickstarting
    """
    term = term if isinstance(term, LossTerm) else stateless(term)

    def loss(params, student, batch, context):
        return at(value, context) * term.loss(params, student, batch, context)

    return LossTerm(term.init, loss)


def gate(weight: Callable, term: LossTerm | Callable) -> LossTerm:
    """`term` times `weight(student, batch, context)` [L, N] or []; no gradient flows through the weight.

    `value_gate`, `performance_gate`, `agreement`, `one_minus`, `action_gap`, `confidence` and `burn_in` make weights.

    >>> from jaxkd.losses import forward_kl
    >>> better = lambda student, batch, context: batch.teacher.value > student.value
    >>> term = gate(better, forward_kl())                              # value gate, Czarnecki et al. 2019
    """
    term = term if isinstance(term, LossTerm) else stateless(term)

    def loss(params, student, batch, context):
        factor = jax.lax.stop_gradient(jnp.asarray(weight(student, batch, context), jnp.float32))
        return factor * term.loss(params, student, batch, context)

    return LossTerm(term.init, loss)


def proximal(epsilon: float | jax.Array | Callable, term: LossTerm | Callable) -> LossTerm:
    """`term` times max(rho, 1 - epsilon), rho = pi_S(a) / pi_acting(a): proximal policy distillation (Spigler 2025).

    The gradient flows through rho too, as in the paper's code; a `gate` would stop it. An action that the student has
    come to avoid keeps at least 1 - epsilon of its term.

    Args:
        epsilon: in [0, 1], PPO's clip range; a number or a schedule `update -> epsilon`.

    Returns:
        a term, [L, N]; reads `batch.action` and `batch.acting.policy`.

    >>> from jaxkd.losses import forward_kl
    >>> term = proximal(0.2, forward_kl())
    """
    check.number("epsilon", epsilon, low=0, high=1)
    term = term if isinstance(term, LossTerm) else stateless(term)

    def loss(params, student, batch, context):
        ratio = jnp.exp(
            student.policy.log_prob(batch.action) - batch.acting.policy.log_prob(batch.action)
        )
        return jnp.maximum(ratio, 1 - at(epsilon, context)) * term.loss(
            params, student, batch, context
        )

    return LossTerm(term.init, loss)


def for_task(task: int | jax.Array, term: LossTerm | Callable) -> LossTerm:
    """`term` on the rows of one task, where `batch.obs["task"] == task`; 0 elsewhere.

    The engine divides by the weight of all rows: a task counts by its share of them.

    Args:
        task: its number, as in the observation's field "task" (`envs.concat`).

    >>> from jaxkd.losses import forward_kl, reverse_kl
    >>> terms = {"first": for_task(0, forward_kl()), "second": for_task(1, reverse_kl())}
    """
    check.number("task", task, low=0)
    term = term if isinstance(term, LossTerm) else stateless(term)

    def loss(params, student, batch, context):
        if not isinstance(batch.obs, dict) or "task" not in batch.obs:
            fields = (
                ", ".join(map(repr, batch.obs))
                if isinstance(batch.obs, dict)
                else "none, it is one array"
            )
            raise UsageError(
                f"for_task reads the field 'task' of the observation, which has the fields: {fields}. Drop for_task, or add it."
            )
        return jnp.where(batch.obs["task"] == task, term.loss(params, student, batch, context), 0.0)

    return LossTerm(term.init, loss)


def watch(fn: LossTerm | Callable) -> LossTerm:
    """A diagnostic: reported as "loss/<name>" like a term, but without gradient.

    >>> agreement = watch(lambda student, batch: student.policy.mode() == batch.teacher.policy.mode())
    """
    term = fn if isinstance(fn, LossTerm) else stateless(fn)

    def loss(params, student, batch, context):
        return jax.lax.stop_gradient(
            jnp.asarray(term.loss(params, student, batch, context), jnp.float32)
        )

    return LossTerm(term.init, loss)
