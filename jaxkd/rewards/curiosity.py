"""What is paid for surprise: a student that is not yet its teacher, and dynamics not yet learnt.

Legend of shapes: `T` time, `B` environments, `R = T B` rows, `D` numbers of a flat observation,
`F` features, `A` actions or action dimensions.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import Batch, RewardTransform
from jaxkd.description import described
from jaxkd.rewards.combine import add
from jaxkd.rewards.learned import (
    PREDICTOR,
    Model,
    Predictor,
    apply_layers,
    init_layers,
    learned,
    trained_widths,
)


@described
def disagreement(
    coef: float | jax.Array | Callable = 1.0, *, measure: Callable | None = None, stream: str = ""
) -> RewardTransform:
    """r + coef KL(T || S) at s', 0 at termination: pay for going where it is not yet its teacher.

    The prediction error that a teacher gives instead of a random network. It falls as the student
    learns. Rows of weight 0 pay nothing.

    Args:
        coef: a number or a schedule `update -> coef`.
        measure: instead of that KL, (student Outputs, teacher Outputs) -> [T, B].
        stream: the reward it is added to.

    >>> disagreement(0.1).stream
    ''
    """
    measure = measure or (lambda student, teacher: teacher.policy.kl(student.policy))
    check.function("measure", measure, "(student Outputs, teacher Outputs) -> [T, B]")

    def apart(batch, context):
        distance = measure(batch.acting_next, batch.teacher_next)
        distance = jnp.where(batch.terminated > 0, 0.0, distance)
        if isinstance(batch.weight, tuple):
            return distance
        return jnp.where(batch.weight > 0, distance, 0.0)

    return add(apart, coef, stream=stream)


@described
def icm(
    coef: float | jax.Array | Callable = 1.0,
    *,
    beta: float | jax.Array = 0.2,
    terminal: bool = True,
    predictor: Predictor = PREDICTOR,
    stream: str = "",
) -> RewardTransform:
    """r + coef / 2 |f(phi(s), a) - phi(s')|^2: intrinsic curiosity (Pathak et al. 2017).

    The features phi are learnt with an inverse model g, which says from phi(s) and phi(s') what was
    done: what actions do not change is not worth a feature. All three are trained on
    (1 - beta) inverse + beta forward, where forward = 1/2 |f - phi(s')|^2, a sum over features, and
    inverse is the cross-entropy of the action, or the mean squared error of a continuous one.

    The forward error trains phi too, as in the paper and its code (features may shrink to be
    predicted; the inverse model holds against it). Burda et al. (2018, large-scale study) stop it.

    Args:
        coef: the paper's eta; a number or a schedule `update -> coef`.
        beta: share of the forward error, in [0, 1].
        terminal: False pays nothing for a state that terminates the episode.
        predictor: sizes of phi, f and g (each has its hidden layers), and their training.
        stream: the reward it is added to.

    Raises:
        UsageError: `beta` is outside [0, 1].

    >>> icm(0.01, stream="curiosity").stream
    'curiosity'
    """
    check.number("beta", beta, low=0, high=1)

    def init(key, rows):
        key_encoder, key_forward, key_inverse = jax.random.split(key, 3)
        obs, actions = rows["obs"].shape[-1], rows["action"].shape[-1]
        features = predictor.features
        return (), {
            "encoder": init_layers(key_encoder, trained_widths(predictor, obs)),
            "forward": init_layers(key_forward, trained_widths(predictor, features + actions)),
            "inverse": init_layers(key_inverse, (2 * features, *predictor.hidden, actions)),
        }

    def forward_error(params, before, after, action):
        given = jnp.concatenate([before, action.astype(before.dtype)], axis=-1)
        return 0.5 * jnp.sum(jnp.square(apply_layers(params["forward"], given) - after), axis=-1)

    def bonus(fixed, params, rows):
        before, after = (apply_layers(params["encoder"], rows[name]) for name in _ENDS)
        return forward_error(params, before, after, rows["action"])

    def loss(key, fixed, params, rows):
        before, after = (apply_layers(params["encoder"], rows[name]) for name in _ENDS)
        guess = apply_layers(params["inverse"], jnp.concatenate([before, after], axis=-1))
        forward = forward_error(params, before, after, rows["action"])
        return (1 - beta) * _inverse_error(guess, rows["action"]) + beta * forward

    model = Model(init, bonus, loss)
    return learned(model, _transitions, coef, training=predictor, terminal=terminal, stream=stream)


_ENDS = "obs", "next_obs"  # of a transition


def _transitions(batch: Batch) -> dict[str, jax.Array]:
    """What leads where: actions are bool [T, B, A], one-hot, or float32 [T, B, D]."""
    action = batch.action
    if jnp.issubdtype(action.dtype, jnp.integer):
        action = jax.nn.one_hot(action, batch.acting.policy.logits.shape[-1], dtype=bool)
    return {"obs": batch.obs, "next_obs": batch.next_obs, "action": action}


def _inverse_error(guess: jax.Array, action: jax.Array) -> jax.Array:
    """How badly the action was guessed, [M], from [M, A]: logits, or a continuous action."""
    if action.dtype == bool:
        return -jnp.sum(jnp.where(action, jax.nn.log_softmax(guess), 0.0), axis=-1)
    return jnp.mean(jnp.square(guess - action), axis=-1)
