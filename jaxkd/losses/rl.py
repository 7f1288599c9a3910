"""Reinforcement learning: terms that read advantages and targets."""

import jax
import jax.numpy as jnp

from jaxkd import check, moments
from jaxkd.base import LossTerm, UsageError
from jaxkd.description import described
from jaxkd.losses.combine import probability_ratio, stateless
from jaxkd.losses.value import value_of, weighted_moments


@described
def policy_gradient() -> LossTerm:
    """-log pi_S(a) A: its gradient is the policy gradient (Williams 1992; Sutton et al. 2000).

    Of one step from the policy that acted, the student's own, sampled. The advantage is data and
    is not normalised: Czarnecki et al. (2019, theorem 2) need it as it is, of Monte-Carlo returns.
    Exact for one epoch and one minibatch; for more steps on the same rollout take `ppo_clip`.

    Returns:
        a term, [L, N]; reads `batch.action` and `batch.advantage`.

    >>> policy_gradient().init(None, None)
    ()
    """

    def loss(student, batch):
        return -student.policy.log_prob(batch.action) * batch.advantage

    return stateless(loss)


@described
def ppo_clip(
    epsilon: float | jax.Array = 0.2,
    *,
    epsilon_high: float | jax.Array | None = None,
    normalise: bool = True,
    sequence: bool = False,
) -> LossTerm:
    """-min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A) (Schulman et al. 2017).

    rho = pi_S / pi_acting, at most e^60, which float32 holds. pi_acting is the student's policy in
    that step: a ratio of probabilities only where it acted itself, sampled (`student_acts()`).

    Args:
        epsilon: clip range, > 0.
        epsilon_high: of the upper end, 1 + epsilon_high, where it is another one: "clip-higher"
            (Yu et al. 2025, DAPO: 0.2 and 0.28) lets improbable actions grow.
        sequence: one ratio for all rows of a sequence that count, the geometric mean of theirs
            (Zheng et al. 2025, GSPO; epsilon 3e-4 and 4e-4). The rows are one episode's where
            sequences are rollouts and every update begins with a reset (`group_relative`).
        normalise: A gets mean 0 and standard deviation 1 over the rows of the minibatch that count
            (weight above 0), and is 0 where it does not vary: beyond rounding, 1e-6 of its size.

    Returns:
        a term, [L, N]; reads `batch.advantage` and `batch.acting.policy`.

    Raises:
        UsageError: it normalises over minibatches of one row, which makes every advantage 0.

    >>> ppo_clip(0.1).init(None, None)
    ()
    """
    check.number("epsilon", epsilon, low=0, above=True)
    check.number("epsilon_high", epsilon_high, low=0, above=True)
    above = epsilon if epsilon_high is None else epsilon_high

    def loss(student, batch):
        if normalise and batch.advantage.size == 1:
            raise UsageError(
                "it normalises the advantage over a minibatch of one row, where it is always 0. "
                "Take fewer minibatches, or ppo_clip(normalise=False)."
            )
        ratio = probability_ratio(student, batch, sequence)
        advantage = _standardised(batch.advantage, batch.weight) if normalise else batch.advantage
        clipped = jnp.clip(ratio, 1 - epsilon, 1 + above)
        return -jnp.minimum(ratio * advantage, clipped * advantage)

    return stateless(loss)


def _standardised(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x [L, N] with mean 0 and deviation 1 where it counts; 0 elsewhere, and if constant."""
    counts = weight > 0
    mean, var = weighted_moments(x, weight)
    shown = counts & moments.varies(x, counts)
    return jnp.where(shown, (x - mean) / (jnp.sqrt(var) + 1e-8), 0.0)


@described
def td_mse(*, stream: str = "", clip: float | jax.Array | None = None) -> LossTerm:
    """(V_S(s) - target)^2 for the value of one reward stream.

    Args:
        stream: "" is the environment's; another name reads the head `extra[stream]`.
        clip: the value may move this far from the acting one before its gradient stops (PPO's
            clipped value loss: the larger of both squared errors); None: no clipping.

    Returns:
        a term, [L, N]; reads `batch.targets[stream]`, and `batch.acting` if it clips.

    >>> td_mse(clip=0.2).init(None, None)
    ()
    """
    check.number("clip", clip, low=0, above=True)

    def loss(student, batch):
        value = value_of(student, "student", stream)
        if stream not in batch.targets:
            raise UsageError(
                f"it reads the target of stream {stream!r}, but returns has {set(batch.targets)}. "
                f"Add returns for it."
            )
        error = jnp.square(value - batch.targets[stream])
        if clip is None:
            return error
        before = value_of(batch.acting, "student", stream)
        near = before + jnp.clip(value - before, -clip, clip)
        return jnp.maximum(error, jnp.square(near - batch.targets[stream]))

    return stateless(loss)


@described
def entropy() -> LossTerm:
    """-H(pi_S): minimised, it keeps the policy random; `scale` gives its weight.

    >>> entropy().init(None, None)
    ()
    """

    def loss(student, batch):
        return -student.policy.entropy()

    return stateless(loss)
