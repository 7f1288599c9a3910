"""What the teacher pays: for its own actions, for where they lead, and for progress in its value.

All are `add` of a function.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import RewardTransform
from jaxkd.description import described
from jaxkd.losses.value import value_of
from jaxkd.rewards.combine import add


@described
def teacher_reward(coef: float | jax.Array | Callable = 1.0, stream: str = "") -> RewardTransform:
    """r + coef log pi_T(a | s): entropy regularised distillation with `losses.entropy`.

    Czarnecki et al. 2019. Together they leave out how an action changes the entropy of later
    states. The gradient of the reverse KL along the student's trajectories has one term more,
    `successor(lambda student, teacher: -student.policy.entropy(), gamma=gamma)`. With continuous
    actions it is a log density, any sign. Rows of weight 0 pay nothing: the action was
    not the student's.

    Args:
        coef: a number or a schedule `update -> coef`.
        stream: the reward it is added to.

    >>> teacher_reward(0.1).stream
    ''
    """

    def log_prob(batch, context):
        found = batch.teacher.policy.log_prob(batch.action)
        if isinstance(batch.weight, tuple):
            return found
        return jnp.where(batch.weight > 0, found, 0.0)

    return add(log_prob, coef, stream=stream)


@described
def teacher_log_ratio(
    coef: float | jax.Array | Callable = 1.0, *, baseline: bool = False, stream: str = ""
) -> RewardTransform:
    """r + coef log (pi_T(a | s) / pi_S(a | s)): minus what an action adds to the reverse KL.

    With `policy_gradient` or `ppo_clip` it is the gradient of KL(S || T) from sampled tokens alone.
    `returns.immediate()` counts each step for itself, which is on-policy distillation (Lu et al.
    2025); `gae(1.0, 1.0)` counts what an action leads to, as MiniLLM does (Gu et al. 2024). Nothing
    is differentiated here: the gradient of the log ratio itself holds nothing of the teacher. Rows
    of weight 0 pay nothing.

    Args:
        coef: a number or a schedule `update -> coef`.
        baseline: plus KL(S || T) in the state, the mean of what is paid, which leaves the gradient
            of immediate rewards as it is with less noise. It reads the whole distributions.
        stream: the reward it is added to.

    >>> teacher_log_ratio(0.1).stream
    ''
    """

    def paid(batch, context):
        ours, theirs = batch.acting.policy, batch.teacher.policy
        found = theirs.log_prob(batch.action) - ours.log_prob(batch.action)
        found = found + ours.kl(theirs) if baseline else found
        return found if isinstance(batch.weight, tuple) else jnp.where(batch.weight > 0, found, 0.0)

    return add(paid, coef, stream=stream)


@described
def successor(
    measure: Callable,
    *,
    gamma: float | jax.Array = 1.0,
    coef: float | jax.Array | Callable = 1.0,
    stream: str = "",
) -> RewardTransform:
    """r - coef gamma l(s') (1 - terminated): what a loss on own states lacks to be a gradient.

    A student that acts moves the states it is judged on (Czarnecki et al. 2019, theorem 2).
    `policy_gradient` on this reward, plus the distillation loss l itself on every state, descend
    E sum_t gamma^t l(s_t); the loss alone descends nothing and may cycle. l = H(T || S) makes it
    N-distill, l = H(S || T) expected entropy regularised distillation. The theorem is for whole
    episodes and Monte-Carlo returns: `returns.monte_carlo(gamma)`, no normalisation of advantages,
    and states weighted by gamma^t, which one leaves out as usual.

    Args:
        measure: l, (student Outputs, teacher Outputs) -> [T, B], given both at the true successor,
            also where the time limit cut.
        gamma: of the objective, the same as in `gae`, in [0, 1].
        coef: a number or a schedule `update -> coef`; the weight that the loss has.
        stream: the reward it is added to.

    >>> cross = lambda student, teacher: teacher.policy.cross_entropy(student.policy)
    >>> n_distill = successor(cross, gamma=0.99)
    """
    check.function("measure", measure, "(student Outputs, teacher Outputs) -> [T, B]")
    check.number("gamma", gamma, low=0, high=1)

    def cost(batch, context):
        return -gamma * measure(batch.acting_next, batch.teacher_next) * (1 - batch.terminated)

    return add(cost, coef, stream=stream)


@described
def potential_shaping(
    gamma: float | jax.Array = 0.99, coef: float | jax.Array | Callable = 1.0, *, stream: str = ""
) -> RewardTransform:
    """r + coef (gamma V_T(s') (1 - terminated) - V_T(s)): shaping by the teacher's value.

    It leaves the optimal policy alone (Ng, Harada & Russell 1999). The potential is the teacher's
    value, 0 at termination, that of the true successor where the time limit cut. Over an episode
    the bonus sums, discounted, to gamma^T V_T(s_T) - V_T(s_0), rows of weight 0 included. gamma = 1
    is Czarnecki et al.'s teacher V reward.

    Args:
        gamma: the same as in `returns`, in [0, 1]; with another one the optimal policy moves.
        coef: a number or a schedule `update -> coef`. While it changes, so do the targets of the
            critic.
        stream: the reward it is added to.

    >>> potential_shaping(0.99).stream
    ''
    """
    check.number("gamma", gamma, low=0, high=1)

    def progress(batch, context):
        before, after = value_of(batch.teacher, "teacher"), value_of(batch.teacher_next, "teacher")
        return gamma * after * (1 - batch.terminated) - before

    return add(progress, coef, stream=stream)
