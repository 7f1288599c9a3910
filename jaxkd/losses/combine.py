"""Combinators: how a function becomes a term, and how much and where a term counts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxkd.base import LossTerm, UsageError


def stateless(fn: Callable) -> LossTerm:
    """A term without parameters from `fn(student, batch)` or `fn(student, batch, context)` -> [L, N].

    `distill` accepts such a function bare.

    >>> term = stateless(lambda student, batch: -student.policy.entropy())
    >>> term.init(None, None)
    ()
    """
    if not callable(fn):
        raise UsageError(f"a loss is a function (student, batch[, context]) -> [L, N] or a LossTerm, got {type(fn).__name__}.")
    names = getattr(getattr(fn, "__code__", None), "co_varnames", ())[: getattr(getattr(fn, "__code__", None), "co_argcount", 2)]

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
        return (value(context.update) if callable(value) else value) * term.loss(params, student, batch, context)

    return LossTerm(term.init, loss)


def gate(weight: Callable, term: LossTerm | Callable) -> LossTerm:
    """`term` times `weight(student, batch, context)` [L, N] or []; no gradient flows through the weight.

    >>> from jaxkd.losses import forward_kl
    >>> better = lambda student, batch, context: batch.teacher.value > student.value
    >>> term = gate(better, forward_kl())                              # value gate, Czarnecki et al. 2019
    """
    term = term if isinstance(term, LossTerm) else stateless(term)

    def loss(params, student, batch, context):
        factor = jax.lax.stop_gradient(jnp.asarray(weight(student, batch, context), jnp.float32))
        return factor * term.loss(params, student, batch, context)

    return LossTerm(term.init, loss)


def watch(fn: LossTerm | Callable) -> LossTerm:
    """A diagnostic: reported as "loss/<name>" like a term, but without gradient.

    >>> agreement = watch(lambda student, batch: student.policy.mode() == batch.teacher.policy.mode())
    """
    term = fn if isinstance(fn, LossTerm) else stateless(fn)

    def loss(params, student, batch, context):
        return jax.lax.stop_gradient(jnp.asarray(term.loss(params, student, batch, context), jnp.float32))

    return LossTerm(term.init, loss)
