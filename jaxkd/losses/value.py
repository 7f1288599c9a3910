"""Value distillation: the teacher's state values, its Q-values, and those without the former."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxkd import check, moments
from jaxkd.base import Batch, LossTerm, Outputs, UsageError
from jaxkd.description import described
from jaxkd.distributions import Categorical, legal
from jaxkd.losses.combine import at, stateless
from jaxkd.losses.policy import both_logits, logits_of


def value_of(outputs: Outputs, who: str, stream: str = "") -> jax.Array:
    """The value [L, N] of one reward stream, or an error that says how `who` gets a head for it."""
    head = (outputs.extra or {}).get(stream, ()) if stream else outputs.value
    if not hasattr(head, "shape"):
        fix = (
            f"extra=({stream!r},) in its network"
            if stream
            else "let its module return (policy parameters, value)"
        )
        which = f" for stream {stream!r}" if stream else ""
        raise UsageError(f"it reads a value, but the {who} has no value head{which}: {fix}.")
    return head


@described
def value_mse(*, normalise: bool = False) -> LossTerm:
    """(V_T(s) - V_S(s))^2: the student's value regressed on the teacher's.

    The teacher's value is of the teacher's policy and reward scale: a student that acts differently
    has another one. With `normalise` it is the global term of hierarchical value distillation,
    beside `advantage_mse` or `advantage_kl`.

    Args:
        normalise: divide by the variance of V_T over the minibatch; a constant V_T is divided by 1.

    Returns:
        a term, [L, N]; reads `batch.teacher.value`.

    >>> value_mse().init(None, None)
    ()
    """

    def loss(student, batch):
        theirs = value_of(batch.teacher, "teacher")
        error = jnp.square(value_of(student, "student") - theirs)
        return error / _spread(theirs, batch.weight) if normalise else error

    return stateless(loss)


@described
def q_mse() -> LossTerm:
    """(Q_S(s, a) - target)^2 at the action taken: PQN (Gallici et al. 2025).

    Q-learning without a replay. It is twice purejaxql's loss, which has a factor 1/2: that matters
    beside a gradient clip and other terms. A Q network is a policy whose logits are Q-values and
    whose value is their maximum; the target is what `returns` says.

    Returns:
        a term, [L, N]; discrete actions only; reads `batch.action` and `batch.target`.

    >>> q_mse().init(None, None)
    ()
    """

    def loss(student, batch):
        q = logits_of(student.policy, "student", "td_mse")
        # Not a gather, whose gradient is a scatter, which is slow.
        chosen = jax.nn.one_hot(batch.action, q.shape[-1], dtype=bool)
        return jnp.square(jnp.sum(jnp.where(chosen, q, 0.0), axis=-1) - batch.target)

    return stateless(loss)


@described
def advantage_mse(*, normalise: bool = True) -> LossTerm:
    """sum_a (A_S(a) - A_T(a))^2 / Var[A_T], A = z - max z <= 0.

    The local term of hierarchical value distillation (ours).

    Q-values differ little between actions and much between states: a student that fits Q spends
    itself on V. Here V is gone; `value_mse(normalise=True)` is the global term, under another name
    in the same dict. The survey names the method without a formula. The dueling split is Wang et
    al. 2016's, with the maximum in place of the mean.

    Args:
        normalise: divide by the variance of A_T over the minibatch and its actions; a constant A_T
            is divided by 1.

    Returns:
        a term, [L, N]; discrete actions only, those that neither policy masks; reads
        `batch.teacher.policy`, whose logits are Q-values.

    >>> hierarchical = {"global": value_mse(normalise=True), "local": advantage_mse()}
    """

    def loss(student, batch):
        ours, theirs = _advantages(student, batch)
        allowed = legal(ours) & legal(theirs)
        ours, theirs = (jnp.where(allowed, x, 0.0) for x in (ours, theirs))
        error = jnp.sum(jnp.square(ours - theirs), axis=-1)
        weight = jnp.where(allowed, batch.weight[..., None], 0.0)
        return error / _spread(theirs, weight) if normalise else error

    return stateless(loss)


@described
def advantage_kl(temperature: float | jax.Array | Callable = 0.01) -> LossTerm:
    """KL(softmax(A_T / T) || softmax(A_S / T)), A = z - max z.

    The local term of hierarchical value distillation as a policy (ours).

    Both sides are divided by T and there is no factor T^2: advantages have the unit of the reward,
    and T says which difference matters. Rusu et al. (2015) sharpen the teacher only.

    Args:
        temperature: > 0, in units of the advantage; a number or a schedule.

    Returns:
        a term, [L, N], nats; discrete actions only; reads `batch.teacher.policy`, whose logits are
        Q-values.

    >>> hierarchical = {"global": value_mse(normalise=True), "local": advantage_kl(0.01)}
    """
    check.number("temperature", temperature, low=0, above=True)

    def loss(student, batch, context):
        ours, theirs = _advantages(student, batch)
        t = at(temperature, context)
        return Categorical(theirs).temper(t).kl(Categorical(ours).temper(t))

    return stateless(loss)


def weighted_moments(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and population variance [] of x [...] under the weights [...].

    What has weight 0 is not looked at, whatever it is; both are 0 where every weight is 0.
    """
    total = jnp.maximum(jnp.sum(weight), 1e-8)
    average = lambda x: jnp.sum(jnp.where(weight > 0, weight * x, 0.0)) / total
    mean = average(x)
    error = average(x - mean)  # of the mean, which would count as variance where x is large
    var = average(jnp.square(x - mean)) - jnp.square(error)
    return mean + error, jnp.maximum(var, 0.0)


def _spread(x: jax.Array, weight: jax.Array) -> jax.Array:
    """The variance [] of x as a unit, without gradient; 1 where x is constant up to rounding."""
    _, var = weighted_moments(x, weight)
    return jax.lax.stop_gradient(jnp.where(moments.varies(x, weight > 0), var, 1.0))


def _advantages(student: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """A_S and A_T [L, N, A]: logits minus their maximum."""
    ours, theirs = both_logits(student.policy, batch.teacher.policy, "forward_kl")
    return ours - jnp.max(ours, axis=-1, keepdims=True), theirs - jnp.max(
        theirs, axis=-1, keepdims=True
    )
