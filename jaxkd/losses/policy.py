"""Policy distillation: how far the student's action distribution is from the teacher's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import Batch, Context, LossTerm, Outputs, UsageError
from jaxkd.description import described
from jaxkd.distributions import MASK, Categorical, TopK, full_precision, legal, log_probs
from jaxkd.losses.combine import at, stateless

_NEAR = 0.03  # of y: below it the series of `_growth` has float32's precision
_LARGEST = 60.0  # of a log ratio: e^60 times any probability is finite in float32


@described
def forward_kl(temperature: float | jax.Array | Callable = 1.0) -> LossTerm:
    """KL(teacher || student), mass-covering: T^2 KL(p_T^(1/T) || p_S^(1/T)) (Hinton et al. 2015).

    Rusu et al. (2015) sharpen the teacher only: `networks.temper(teacher, 0.01)` with
    `forward_kl()`.

    Args:
        temperature: of both, > 0; a number or a schedule `update -> temperature`. The factor T^2
            keeps the gradient's size in logits. Of normals, whose variances T multiplies, that in
            the mean grows as T and that in log_std as T^2: leave T at 1, or `scale` the term.

    Returns:
        a term, [L, N], nats; reads `batch.teacher.policy`.

    >>> forward_kl(temperature=2.0).init(None, None)
    ()
    """
    check.number("temperature", temperature, low=0, above=True)

    def loss(student, batch, context):
        ours, theirs, squared = _tempered(temperature, student, batch, context)
        return squared * theirs.kl(ours)

    return stateless(loss)


@described
def reverse_kl(temperature: float | jax.Array | Callable = 1.0) -> LossTerm:
    """KL(student || teacher), mode-seeking: T^2 KL(p_S^(1/T) || p_T^(1/T)).

    Agarwal et al. 2024, GKD at beta = 1. Both KLs in one dict are the symmetric divergence
    (Jeffreys 1946): losses add.

    Args:
        temperature: as in `forward_kl`.

    >>> reverse_kl().init(None, None)
    ()
    """
    check.number("temperature", temperature, low=0, above=True)

    def loss(student, batch, context):
        ours, theirs, squared = _tempered(temperature, student, batch, context)
        return squared * ours.kl(theirs)

    return stateless(loss)


@described
def jsd(
    beta: float | jax.Array | Callable = 0.5,
    *,
    temperature: float | jax.Array | Callable = 1.0,
    normalise: bool = False,
) -> LossTerm:
    """Generalised Jensen-Shannon divergence, T^2 (b KL(T || M) + (1 - b) KL(S || M)).

    M = b T + (1 - b) S (Agarwal et al. 2024, GKD).
    As written it fades at both ends: about b KL(T || S) near b = 0, (1 - b) KL(S || T) near b = 1,
    exactly 0 at 0 and 1.
    `normalise` divides by b (1 - b): then it runs continuously from `forward_kl` at 0 to
    `reverse_kl` at 1, steeply near the ends where one policy is sure of what the other excludes:
    KL(T || M) is at most -log b.

    Args:
        beta: b, the teacher's share of the mixture, in [0, 1]; a number or a schedule
            `update -> beta`.
        temperature: of both, as in `forward_kl`.
        normalise: divide by b (1 - b).

    Returns:
        a term, [L, N], nats; discrete actions only; reads `batch.teacher.policy`.

    >>> jsd(0.9, normalise=True).init(None, None)
    ()
    """
    check.number("beta", beta, low=0, high=1)
    check.number("temperature", temperature, low=0, above=True)

    def loss(student, batch, context):
        ours, theirs, squared = _tempered(temperature, student, batch, context)
        log_q, log_p = _log_probs(ours, theirs, "forward_kl or reverse_kl")
        b = at(beta, context)
        teacher, student = _skewed(log_p, log_q, b), _skewed(log_q, log_p, 1 - b)
        return squared * (teacher + student if normalise else b * (1 - b) * (teacher + student))

    return stateless(loss)


@described
def skew_kl(alpha: float | jax.Array | Callable = 0.1) -> LossTerm:
    """KL(T || a T + (1 - a) S): a forward KL that stays below -log a.

    Also where the student is blind (Ko et al. 2024, DistiLLM).

    Args:
        alpha: a, in [0, 1]; 0 is `forward_kl`, 1 is 0. A number or a schedule `update -> alpha`.

    Returns:
        a term, [L, N], nats; discrete actions only; reads `batch.teacher.policy`.

    >>> skew_kl(0.1).init(None, None)
    ()
    """
    check.number("alpha", alpha, low=0, high=1)

    def loss(student, batch, context):
        log_q, log_p = _log_probs(student.policy, batch.teacher.policy, "forward_kl")
        a = at(alpha, context)
        return (1 - a) * _skewed(log_p, log_q, a)

    return stateless(loss)


@described
def skew_reverse_kl(alpha: float | jax.Array | Callable = 0.1) -> LossTerm:
    """KL(S || (1 - a) T + a S): a reverse KL that stays below -log a.

    Also where the teacher never goes (Ko et al. 2024, DistiLLM).

    Args:
        alpha: a, in [0, 1]; 0 is `reverse_kl`, 1 is 0. A number or a schedule `update -> alpha`.

    >>> skew_reverse_kl(0.1).init(None, None)
    ()
    """
    check.number("alpha", alpha, low=0, high=1)

    def loss(student, batch, context):
        log_q, log_p = _log_probs(student.policy, batch.teacher.policy, "reverse_kl")
        a = at(alpha, context)
        return (1 - a) * _skewed(log_q, log_p, a)

    return stateless(loss)


@described
def total_variation() -> LossTerm:
    """1/2 sum_a |p_T(a) - p_S(a)|, in [0, 1]: the share of actions that would have to change.

    Returns:
        a term, [L, N]; discrete actions only; reads `batch.teacher.policy`. Its gradient does not
        fade near the teacher.

    >>> total_variation().init(None, None)
    ()
    """

    def loss(student, batch):
        log_q, log_p = _log_probs(student.policy, batch.teacher.policy, "forward_kl")
        return 0.5 * jnp.sum(jnp.abs(jnp.exp(log_p) - jnp.exp(log_q)), axis=-1)

    return stateless(loss)


@described
def nll() -> LossTerm:
    """-log p_S(mode of the teacher): the teacher's best action as a hard label.

    Rusu et al. 2015, NLL. For normals the mode is the mean, and a student that meets it shrinks its
    deviation to the least there is (`distributions.Normal`); `action_mse` leaves that alone.

    >>> nll().init(None, None)
    ()
    """

    def loss(student, batch):
        return -student.policy.log_prob(batch.teacher.policy.mode())

    return stateless(loss)


@described
def imitation() -> LossTerm:
    """-log p_S(a) of the actions in the batch: maximum likelihood, next-token cross-entropy.

    Of right answers (`memory.dataset`) it is supervised fine-tuning, of a teacher's samples
    (`teacher_acts()`) distillation at the level of sequences (Kim & Rush 2016).

    >>> imitation().init(None, None)
    ()
    """

    def loss(student, batch):
        return -student.policy.log_prob(batch.action)

    return stateless(loss)


@described
def action_mse(delta: float | jax.Array | None = None) -> LossTerm:
    """mean_D (a_S - a_T)^2 of both modes: behaviour cloning of continuous actions.

    rsl_rl's distillation. The deviations are neither compared nor trained.

    Args:
        delta: Huber's instead (1964): d^2 / 2 where |d| <= delta, delta (|d| - delta / 2) beyond.

    Returns:
        a term, [L, N]; continuous actions only; reads `batch.teacher.policy`.

    >>> action_mse(delta=1.0).init(None, None)
    ()
    """
    check.number("delta", delta, low=0, above=True)

    def loss(student, batch):
        for who, policy in (("student", student.policy), ("teacher", batch.teacher.policy)):
            if hasattr(policy, "logits"):
                raise UsageError(
                    f"it is for continuous actions, but the {who}'s policy is a "
                    f"{type(policy).__name__}. Use nll."
                )
        apart = student.policy.mode() - batch.teacher.policy.mode()
        if delta is None:
            return jnp.mean(jnp.square(apart), axis=-1)
        near = jnp.minimum(jnp.abs(apart), delta)
        return jnp.mean(near * (jnp.abs(apart) - near / 2), axis=-1)

    return stateless(loss)


@described
def cross_entropy() -> LossTerm:
    """H(T || S) = KL(T || S) + H(T): the gradient of `forward_kl()`, another number.

    It is the survey's soft cross-entropy. On the student's own states it is no gradient field
    without `rewards.successor` (Czarnecki et al. 2019).

    >>> cross_entropy().init(None, None)
    ()
    """

    def loss(student, batch):
        ours, theirs = on_one_support(student.policy, batch.teacher.policy)
        return theirs.cross_entropy(ours)

    return stateless(loss)


@described
def reverse_cross_entropy() -> LossTerm:
    """H(S || T) = KL(S || T) + H(S): greedy in the teacher's log-probabilities.

    Czarnecki et al. 2019, expected entropy regularised.
    Alone it makes the student deterministic; `reverse_kl` is it minus the student's entropy.

    >>> reverse_cross_entropy().init(None, None)
    ()
    """

    def loss(student, batch):
        ours, theirs = on_one_support(student.policy, batch.teacher.policy)
        return ours.cross_entropy(theirs)

    return stateless(loss)


@described
def ce_kd(
    ce_weight: float | jax.Array | Callable = 0.5, temperature: float | jax.Array | Callable = 2.0
) -> LossTerm:
    """w CE + (1 - w) KD: hard and soft labels mixed (Hinton et al. 2015).

    CE = -log p_S(mode of the teacher), `nll()`; KD = T^2 KL(p_T^(1/T) || p_S^(1/T)),
    `forward_kl(temperature)`.

    Args:
        ce_weight: w, in [0, 1]; a number or a schedule. It multiplies the HARD labels, as the
            survey's alpha does; Hinton's alpha, tunix's and EasyDeL's multiply KD: their alpha is
            1 - ce_weight.
        temperature: of KD, as in `forward_kl`.

    >>> ce_kd(ce_weight=0.1).init(None, None)
    ()
    """
    check.number("ce_weight", ce_weight, low=0, high=1)
    hard, soft = nll(), forward_kl(temperature)

    def loss(student, batch, context):
        w = at(ce_weight, context)
        return w * hard.loss((), student, batch, context) + (1 - w) * soft.loss(
            (), student, batch, context
        )

    return stateless(loss)


@described
def logit_mse() -> LossTerm:
    """sum_a (z_T(a) - z_S(a))^2 on unnormalised logits (Ba & Caruana 2014).

    They are the Q-values of a Q teacher (Rusu et al. 2015, MSE). The sum is over the actions that
    neither policy masks.

    Returns:
        a term, [L, N]; discrete actions only; reads `batch.teacher.policy`.

    >>> logit_mse().init(None, None)
    ()
    """

    def loss(student, batch):
        ours, theirs = both_logits(student.policy, batch.teacher.policy, "forward_kl")
        allowed = legal(ours) & legal(theirs)
        return jnp.sum(jnp.square(jnp.where(allowed, theirs - ours, 0.0)), axis=-1)

    return stateless(loss)


@described
def standardised_kl(
    temperature: float | jax.Array | Callable = 2.0, *, allow_two: bool = False
) -> LossTerm:
    """T^2 KL(softmax Z_T || softmax Z_S), Z standardised logits (Sun et al. 2024).

    Z = (z - mean z) / (T std z + 1e-7) over the actions.

    The scale of Q-values drops out, and with it the teacher's confidence: the student's own logits
    may have any scale, so judge it greedy, or standardise while acting too. With few actions take
    T < 1: at T = 2 no probability of 3 exceeds 0.544.

    Args:
        temperature: > 0; a number or a schedule.
        allow_two: go on with two actions, where the term has no gradient.

    Returns:
        a term, [L, N], nats; discrete actions only. Mean and deviation are of the actions that may
        be taken, each policy's own; with two of them the term has no gradient in that state.

    Raises:
        UsageError: with two actions: standardised, their logits are -0.71 and 0.71, always.

    >>> standardised_kl(temperature=0.5).init(None, None)
    ()
    """
    check.number("temperature", temperature, low=0, above=True)

    def loss(student, batch, context):
        ours, theirs = both_logits(student.policy, batch.teacher.policy, "forward_kl")
        if ours.shape[-1] == 2 and not allow_two:
            raise UsageError(
                "standardised_kl has no gradient with 2 actions: standardised, two logits are "
                "always -0.71 and 0.71. "
                "Use forward_kl, or allow_two=True if it is one term of several."
            )
        t = at(temperature, context)
        return t**2 * Categorical(_standardised(theirs, t)).kl(Categorical(_standardised(ours, t)))

    return stateless(loss)


def logits_of(policy: Any, who: str, instead: str) -> jax.Array:
    """The logits [..., A], or an error that says what to use for continuous actions."""
    if not hasattr(policy, "logits"):
        raise UsageError(
            f"it is for discrete actions, but the {who}'s policy is a {type(policy).__name__}. "
            f"Use {instead}."
        )
    return full_precision(policy.logits)


def both_logits(ours: Any, theirs: Any, instead: str) -> tuple[jax.Array, jax.Array]:
    """The student's logits and the teacher's, [..., A]."""
    return logits_of(ours, "student", instead), logits_of(theirs, "teacher", instead)


def on_one_support(ours: Any, theirs: Any) -> tuple[Any, Any]:
    """The student's policy and the teacher's, both on k + 1 outcomes where the teacher knows k."""
    if not isinstance(theirs, TopK):
        return ours, theirs
    logits_of(ours, "student", "a teacher without top k")
    if ours.logits.shape[-1] != theirs.number:
        raise UsageError(
            f"the student chooses among {ours.logits.shape[-1]} actions, the teacher's top k are "
            f"of {theirs.number}. Give both one vocabulary."
        )
    return theirs.seen_by(ours), theirs.outcomes()


def _log_probs(ours: Any, theirs: Any, instead: str) -> tuple[jax.Array, jax.Array]:
    """log p_S and log p_T [..., A]."""
    ours, theirs = on_one_support(ours, theirs)
    z_ours, z_theirs = both_logits(ours, theirs, instead)
    return log_probs(z_ours), log_probs(z_theirs)


def _skewed(log_p: jax.Array, log_q: jax.Array, share: Any) -> jax.Array:
    """KL(p || share p + (1 - share) q) / (1 - share) [...] from log-probabilities [..., A].

    With y = (1 - share) (q / p - 1), which is m / p - 1 for the mixture m, it is sum (q - p) g(y)
    for g(y) = 1 - log(1 + y) / y. No term is negative, nothing is divided by what may be 0: it is
    KL(p || q) at share 0 and 0 at share 1.
    """
    ratio = log_q - log_p
    mixed = jnp.logaddexp(_log(share), _log(1 - share) + ratio)  # log(m / p) = log(1 + y)
    y = (1 - share) * jnp.expm1(jnp.minimum(ratio, _LARGEST))
    return jnp.sum((jnp.exp(log_q) - jnp.exp(log_p)) * _growth(y, mixed), axis=-1)


def _growth(y: jax.Array, log_1_plus_y: jax.Array) -> jax.Array:
    """1 - log(1 + y) / y, elementwise; 0 at y = 0."""
    near = jnp.abs(y) < _NEAR
    small, large = jnp.where(near, y, 0.0), jnp.where(near, 1.0, y)
    series = small * (1 / 2 - small * (1 / 3 - small * (1 / 4 - small / 5)))
    return jnp.where(near, series, 1 - log_1_plus_y / large)


def _log(share: Any) -> jax.Array:
    """log of a share in [0, 1]; that of 0 is a mask, finite with gradient 0."""
    some = jnp.asarray(share) > 0
    return jnp.where(some, jnp.log(jnp.where(some, share, 1.0)), MASK)


def _standardised(z: jax.Array, temperature: Any) -> jax.Array:
    """(z - mean) / (temperature std + 1e-7) over the legal actions, Bessel's std; masks stay.

    0 with a finite gradient where all are equal.
    """
    allowed = legal(z)
    number = jnp.sum(allowed, axis=-1, keepdims=True, dtype=z.dtype)
    inside = jnp.where(allowed, z, 0.0)
    mean = jnp.sum(inside, axis=-1, keepdims=True) / number
    centred = jnp.where(allowed, inside - mean, 0.0)
    var = jnp.sum(jnp.square(centred), axis=-1, keepdims=True) / jnp.maximum(number - 1, 1)
    scaled = centred / (temperature * jnp.sqrt(jnp.where(var > 0, var, 1.0)) + 1e-7)
    return jnp.where(allowed, scaled, MASK)


def _tempered(temperature: Any, student: Outputs, batch: Batch, context: Context) -> tuple:
    """Both policies at the temperature, and its square."""
    t = at(temperature, context)
    ours, theirs = student.policy.temper(t), batch.teacher.policy.temper(t)
    return *on_one_support(ours, theirs), t**2
