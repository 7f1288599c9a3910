"""Where and how much a term counts: weights `(student, batch, context) -> [L, N]` or [].

`gate` takes them, and stops their gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import UsageError
from jaxkd.description import described
from jaxkd.distributions import legal
from jaxkd.losses.combine import at
from jaxkd.losses.policy import logits_of
from jaxkd.losses.value import value_of, weighted_moments


@described
def value_gate() -> Callable:
    """1 where V_T(s) > V_S(s), else 0 (Czarnecki et al. 2019, V-gated distillation).

    The teacher is followed only where it promises more than the student has: with a policy gradient
    beside it, a bad teacher does not hold the student back. Both values must be of the same reward
    and discount.

    Returns:
        a weight, [L, N]; reads `batch.teacher.value` and the student's value.

    >>> from jaxkd.losses import cross_entropy, gate
    >>> term = gate(value_gate(), cross_entropy())
    """

    def weight(student, batch, context):
        return value_of(batch.teacher, "teacher") > value_of(student, "student")

    return weight


@described
def performance_gate(
    *, teacher_return: float | jax.Array, random_return: float | jax.Array = 0.0
) -> Callable:
    """clip(1 - (G - G_R) / (G_T - G_R), 0, 1), by the return G (Agarwal et al. 2022).

    1 for a student as good as random, 0 for one as good as its teacher.

    G is `context.episode_return`, of whoever acted in the update before: let the student act. The
    paper (QDagger) has G_R = 0; where returns are negative that gate would be 0 for an ignorant
    student.

    Args:
        teacher_return: G_T, undiscounted, as `evaluate` reports it; above random_return.
        random_return: G_R, of a random policy.

    Returns:
        a weight, []; 1 before the first episode ends.

    >>> from jaxkd.losses import forward_kl, gate
    >>> term = gate(performance_gate(teacher_return=-80.0, random_return=-500.0), forward_kl())
    """
    if (
        all(isinstance(x, int | float) for x in (teacher_return, random_return))
        and not teacher_return > random_return
    ):
        raise UsageError(
            f"teacher_return must be above random_return, got {teacher_return:g} and "
            f"{random_return:g}. Is the teacher trained?"
        )

    def weight(student, batch, context):
        share = 1 - (context.episode_return - random_return) / (teacher_return - random_return)
        return jnp.clip(share, 0, 1)  # 1 for -inf, "none yet"

    return weight


@described
def target_kl(limit: float | jax.Array | Callable) -> Callable:
    """1 while the mean KL(pi_acting || pi_S) of the minibatch is at most `limit`, else 0.

    It holds the policy near to what acted: further epochs of PPO change nothing once the limit is
    passed (Stable-Baselines3 and CleanRL leave the update there, with the mean of an estimate).
    Gate every term that should rest; momentum of the optimizer goes on.

    Args:
        limit: nats, > 0, such as 0.02; a number or a schedule `update -> limit`.

    Returns:
        a weight, []; reads `batch.acting.policy`.

    >>> from jaxkd.losses import gate, ppo_clip
    >>> term = gate(target_kl(0.02), ppo_clip())
    """
    check.number("limit", limit, low=0, above=True)

    def weight(student, batch, context):
        moved = batch.acting.policy.kl(student.policy)
        return weighted_moments(moved, batch.weight)[0] <= at(limit, context)

    return weight


@described
def agreement(
    alpha: float | jax.Array | Callable = 1.0, *, policy: Callable | None = None
) -> Callable:
    """exp(-alpha KL(T || S)): near 1 where the student can follow the teacher.

    Weihs et al. 2021, ADVISOR.

    ADVISOR's loss is w IL + (1 - w) RL, with w from an AUXILIARY policy head trained by imitation
    alone: it shows what an imitator that sees the student's observations could do at best. With the
    student's own policy, which reinforcement learning moves too, w also falls where the student has
    become better than its teacher.

    Args:
        alpha: >= 0; 0 is the weight 1. A number or a schedule `update -> alpha`.
        policy: student Outputs -> the auxiliary head's distribution, such as
            `lambda student: Categorical(student.extra["imitator"])`; default `student.policy`.

    Returns:
        a weight in (0, 1], [L, N]; reads `batch.teacher.policy`.

    >>> from jaxkd.losses import forward_kl, gate, ppo_clip
    >>> w = agreement(4.0)
    >>> terms = {"imitate": gate(w, forward_kl()), "explore": gate(one_minus(w), ppo_clip())}
    """
    check.number("alpha", alpha, low=0)

    def weight(student, batch, context):
        ours = student.policy if policy is None else policy(student)
        return jnp.exp(-at(alpha, context) * batch.teacher.policy.kl(ours))

    return weight


@described
def one_minus(weight: Callable) -> Callable:
    """1 - weight, for the term that counts where the first one does not.

    >>> from jaxkd.losses import gate, ppo_clip
    >>> alone = gate(one_minus(value_gate()), ppo_clip())
    """

    def rest(student, batch, context):
        return 1 - jnp.asarray(weight(student, batch, context), jnp.float32)

    return rest


@described
def action_gap() -> Callable:
    """max_a Q_T - mean_a Q_T: what a uniformly random legal action costs.

    An action gap as in Farahmand et al. (2015), with the mean in place of the second best action.

    Returns:
        a weight >= 0, [L, N], in units of Q; discrete actions only, without those that are masked;
        the teacher's logits are Q-values.

    >>> from jaxkd.losses import gate, nll
    >>> term = gate(action_gap(), nll())
    """

    def weight(student, batch, context):
        q = logits_of(batch.teacher.policy, "teacher", "agreement")
        allowed = legal(q)
        number = jnp.sum(allowed, axis=-1, dtype=q.dtype)
        mean = jnp.sum(jnp.where(allowed, q, 0.0), axis=-1) / number
        return jnp.max(q, axis=-1) - mean

    return weight


@described
def confidence() -> Callable:
    """1 - H(T) / log A: 1 where the teacher is sure, 0 where it is uniform.

    A is the number of actions that may be taken; where there is only one, the weight is 1.

    Returns:
        a weight in [0, 1], [L, N]; discrete actions only; reads `batch.teacher.policy`.

    >>> from jaxkd.losses import forward_kl, gate
    >>> term = gate(confidence(), forward_kl())
    """

    def weight(student, batch, context):
        logits = logits_of(batch.teacher.policy, "teacher", "agreement")
        number = jnp.sum(legal(logits), axis=-1, dtype=logits.dtype)
        most = jnp.log(jnp.maximum(number, 2))  # of an entropy; of a single action it is 0
        return 1 - batch.teacher.policy.entropy() / most

    return weight


@described
def burn_in(steps: int) -> Callable:
    """0 for the first `steps` rows of a sequence, L / (L - steps) after.

    A stored carry warms up first (Kapturowski et al. 2019, R2D2).

    The mean of a term keeps its size. Only the loss of these rows is dropped; the gradient of later
    rows still runs back through them.

    Args:
        steps: rows, fewer than the sequence has.

    Returns:
        a weight, [L, N].

    Raises:
        UsageError: when no row of the sequence would be left.

    >>> from jaxkd.losses import forward_kl, gate
    >>> term = gate(burn_in(8), forward_kl())
    """
    check.count("steps", steps)

    def weight(student, batch, context):
        length = batch.reward.shape[0]
        if steps >= length:
            raise UsageError(
                f"burn_in({steps}) leaves no row of a sequence of length {length}. "
                f"Take fewer steps, or a longer sequence_length."
            )
        counts = jnp.where(jnp.arange(length) < steps, 0.0, length / (length - steps))
        return jnp.broadcast_to(counts[:, None], batch.reward.shape)

    return weight
