"""Combinators: how a function becomes a term, and how much and where a term counts."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import Batch, Context, LossTerm, Outputs, UsageError
from jaxkd.description import described

_LARGEST = 60.0  # of a log ratio: e^60 times any loss is finite in float32


def at(value: Any, context: Context) -> Any:
    """A number as it is, a schedule `update -> value` at this update."""
    if not callable(value):
        return value
    with jax.numpy_dtype_promotion("standard"):  # a float times the number of updates
        return jnp.asarray(value(context.update), jnp.float32)


def probability_ratio(student: Outputs, batch: Batch, sequence: bool = False) -> jax.Array:
    """rho = pi_S(a) / pi_acting(a) [L, N], at most e^60, so that 0 times it is 0 and not nan.

    Args:
        sequence: the geometric mean over the rows of each sequence that count, in all of them.
    """
    now, then = student.policy.log_prob(batch.action), batch.acting.policy.log_prob(batch.action)
    ratio = now - then
    if sequence:
        counts = (batch.weight > 0).astype(ratio.dtype)
        number = jnp.maximum(jnp.sum(counts, axis=0, keepdims=True), 1.0)
        mean = jnp.sum(jnp.where(counts > 0, ratio, 0.0), axis=0, keepdims=True) / number
        ratio = jnp.broadcast_to(mean, ratio.shape)
    return jnp.exp(jnp.minimum(ratio, _LARGEST))


def only(rows: jax.Array, student: Outputs, batch: Batch) -> tuple[Outputs, Batch]:
    """Student and batch whose other rows show what the first of `rows` shows, with weight 0.

    What stood there is not looked at, so that a loss has a finite gradient whatever it was: the
    gradient of a selection is 0 where it does not choose, but that of 0 times nan is nan. A real
    row takes the place because some losses have no gradient at zeros, such as a norm.

    Args:
        rows: bool [L, N].

    >>> from jaxkd.distributions import Categorical
    >>> student = Outputs(Categorical(jnp.array([[[0.0, 1.0], [jnp.nan, 0.0]]])))
    >>> everything = (None,) * 10
    >>> only(jnp.array([[True, False]]), student, Batch(*everything))[0].policy.logits[0, 1]
    Array([0., 1.], dtype=float32)
    """
    first, one_counts = jnp.argmax(rows.reshape(-1)), jnp.any(rows)

    def select(leaf):
        if leaf.shape[: rows.ndim] != rows.shape:
            return leaf  # not of rows: a standard deviation for all states
        row = leaf.reshape(-1, *leaf.shape[rows.ndim :])[first]
        row = jax.lax.stop_gradient(jnp.where(one_counts, row, jnp.zeros((), leaf.dtype)))
        here = rows.reshape(rows.shape + (1,) * (leaf.ndim - rows.ndim))
        return jnp.where(here, leaf, row)

    shown = jax.tree.map(select, batch._replace(carry=()))
    weight = jax.tree.map(lambda weight: jnp.where(rows, weight, 0.0), batch.weight)
    return jax.tree.map(select, student), shown._replace(carry=batch.carry, weight=weight)


@described
def stateless(fn: Callable) -> LossTerm:
    """A term without parameters from `fn(student, batch[, context])` -> [L, N].

    `distill` accepts such a function bare.

    >>> term = stateless(lambda student, batch: -student.policy.entropy())
    >>> term.init(None, None)
    ()
    """
    if not callable(fn):
        raise UsageError(
            f"a loss is a function (student, batch[, context]) -> [L, N] or a LossTerm, "
            f"got {type(fn).__name__}."
        )
    more = _takes_context(fn)

    def loss(params, student, batch, context):
        return fn(student, batch, context) if more else fn(student, batch)

    return LossTerm(lambda key, spec: (), loss)


def _takes_context(fn: Callable) -> bool:
    """Whether a function, bound method or partial has a third place that waits for the context."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # of what is not written in Python
        return False
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    # a default is a value of the user's own: lambda student, batch, weight=weight: ...
    return any(p.default is p.empty or p.name == "context" for p in places[2:3])


@described
def scale(value: float | jax.Array | Callable, term: LossTerm | Callable) -> LossTerm:
    """`term` times `value`: a number, or a schedule `update -> value`.

    Such as `optax.linear_schedule(1.0, 0.0, 100)`.

    >>> import optax
    >>> from jaxkd.losses import forward_kl
    >>> term = scale(optax.linear_schedule(2.0, 0.0, 100), forward_kl())      # kickstarting
    """
    check.number("value", value)
    term = term if isinstance(term, LossTerm) else stateless(term)

    def loss(params, student, batch, context):
        return at(value, context) * term.loss(params, student, batch, context)

    return LossTerm(term.init, loss)


@described
def gate(weight: Callable, term: LossTerm | Callable) -> LossTerm:
    """`term` times `weight(student, batch, context)`, [L, N] or [].

    No gradient flows through the weight. Where it is 0 the term sees nothing of the row, as in
    `for_task`; the engine divides by the weight of all rows.
    `value_gate`, `performance_gate`, `agreement`, `one_minus`, `action_gap`, `confidence` and
    `burn_in` make weights.

    >>> from jaxkd.losses import forward_kl
    >>> better = lambda student, batch, context: batch.teacher.value > student.value
    >>> term = gate(better, forward_kl())                       # value gate, Czarnecki et al. 2019
    """
    term = term if isinstance(term, LossTerm) else stateless(term)

    def loss(params, student, batch, context):
        factor = jax.lax.stop_gradient(jnp.asarray(weight(student, batch, context), jnp.float32))
        counts = jnp.broadcast_to(factor != 0, batch.reward.shape)
        loss = term.loss(params, *only(counts, student, batch), context)
        return jnp.where(counts, factor * loss, 0.0)

    return LossTerm(term.init, loss)


@described
def proximal(epsilon: float | jax.Array | Callable, term: LossTerm | Callable) -> LossTerm:
    """`term` times max(rho, 1 - epsilon): proximal policy distillation (Spigler 2025).

    rho = pi_S(a) / pi_acting(a), at most e^60, which float32 holds.
    The gradient flows through rho too, as in the paper's code; a `gate` would stop it. An action
    that the student has come to avoid keeps at least 1 - epsilon of its term.

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
        kept = jnp.maximum(probability_ratio(student, batch), 1 - at(epsilon, context))
        return kept * term.loss(params, student, batch, context)

    return LossTerm(term.init, loss)


@described
def lagrangian(
    bound: float | jax.Array | Callable, term: LossTerm | Callable, *, initial: float = 1.0
) -> LossTerm:
    """`term` with the weight that holds its mean at `bound`: Lagrange's, learnt beside the student.

    The adaptive KL weight of PPO (Schulman et al. 2017) with the optimizer's steps instead of
    factors of 2. log w ascends w.r.t. mean(term) - bound: the weight grows while the term is above
    the bound and falls towards 0 below it. The student sees w times the term.

    Args:
        bound: of the term's mean over a minibatch; a number or a schedule `update -> bound`.
        initial: the first weight, above 0.

    Returns:
        a term, [L, N]; its own params are {"log_weight": [], "term": those of `term`}.

    >>> def moved(student, batch):
    ...     return batch.acting.policy.kl(student.policy)
    >>> term = lagrangian(0.01, moved)       # beside `policy_gradient`: a trust region
    """
    check.number("bound", bound)
    check.number("initial", initial, low=0, above=True)
    term = term if isinstance(term, LossTerm) else stateless(term)

    def init(key, spec):
        return {"log_weight": jnp.log(jnp.float32(initial)), "term": term.init(key, spec)}

    def loss(params, student, batch, context):
        loss = term.loss(params["term"], student, batch, context)
        weight = jnp.exp(jax.lax.stop_gradient(params["log_weight"]))
        below = jax.lax.stop_gradient(at(bound, context) - loss)
        dual = params["log_weight"] * below
        return weight * loss + dual - jax.lax.stop_gradient(dual)  # reported: w times the term

    return LossTerm(init, loss)


@described
def for_task(task: int | jax.Array, term: LossTerm | Callable) -> LossTerm:
    """`term` on the rows of one task, where `batch.obs["task"] == task`; 0 elsewhere.

    The engine divides by the weight of all rows: a task counts by its share of them. The term sees
    nothing of the other rows: they have weight 0 for it, so that what it normalises by
    (`ppo_clip`, `value_mse(normalise=True)`) is of this task, and nan in them harms nothing.

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
                f"for_task reads the field 'task' of the observation, which has the fields: "
                f"{fields}. Drop for_task, or add it."
            )
        here = batch.obs["task"] == task
        own = only(here, student, batch)
        return jnp.where(here, term.loss(params, *own, context), 0.0)

    return LossTerm(term.init, loss)


@described
def watch(fn: LossTerm | Callable) -> LossTerm:
    """A diagnostic: reported as "loss/<name>" like a term, but without gradient.

    >>> def same(student, batch):
    ...     return student.policy.mode() == batch.teacher.policy.mode()
    >>> agreement = watch(same)
    """
    term = fn if isinstance(fn, LossTerm) else stateless(fn)

    def loss(params, student, batch, context):
        return jax.lax.stop_gradient(
            jnp.asarray(term.loss(params, student, batch, context), jnp.float32)
        )

    return LossTerm(term.init, loss)
