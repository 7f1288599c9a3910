"""Action distributions: records of parameters with closed forms.

Shapes `[...]`: every method returns `[...]`. An action that may not be taken has a logit of -1e9 or
of -inf, which mean the same: probability 0, and a log-probability that is finite (about -1e9), so
that gradients are finite too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxkd.base import UsageError

MASK = -1e9  # the logit of an action that may not be taken
_ILLEGAL = 1e8  # a logit that lies so far below the largest one is a mask
_NEAR = 0.1  # of a log ratio: below it the series of `_excess` has float32's precision
# of a log-std: e^-10 is some hundred steps of a float32 action in [-1, 1]; beyond, e^(2 log_std)
# and its inverse overflow in densities, in divergences and in the optimizer's squares
_LOG_STD = 10.0


def legal(logits: jax.Array) -> jax.Array:
    """Which actions may be taken, bool [..., A]: all whose logit is no mask (-1e9 or -inf).

    Logits are compared with the largest one: adding a number to all of them changes nothing.

    >>> legal(jnp.array([0.5, -1e9, -jnp.inf]))
    Array([ True, False, False], dtype=bool)
    """
    logits = full_precision(logits)
    masked = logits < jnp.max(logits, axis=-1, keepdims=True) - _ILLEGAL
    return ~masked  # and not >=: what is nan stays nan and is seen, it does not become a mask


def log_probs(logits: jax.Array) -> jax.Array:
    """log p [..., A] from logits [..., A]; finite, also of an action that may not be taken.

    >>> log_probs(jnp.array([0.0, 0.0, -jnp.inf])).round(4)
    Array([-6.931e-01, -6.931e-01, -1.000e+09], dtype=float32)
    """
    logits = full_precision(logits)
    return jax.nn.log_softmax(jnp.where(jnp.isneginf(logits), MASK, logits))


def full_precision(x: jax.Array) -> jax.Array:
    """x in float32 at least: half precision leaves two digits of a divergence, and draws by a few
    hundred different random numbers; float16 has no -1e9.
    """
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


class Categorical(NamedTuple):
    """A choice among A actions.

    >>> Categorical(jnp.array([0.0, 0.0])).entropy().round(4)
    Array(0.6931, dtype=float32)
    """

    logits: jax.Array  # [..., A], unnormalised; -1e9 or -inf: may not be taken

    def sample(self, key: jax.Array) -> jax.Array:
        """An action [...], int32."""
        return jax.random.categorical(key, full_precision(self.logits)).astype(jnp.int32)

    def mode(self) -> jax.Array:
        """The most probable action [...], int32; the first of equals."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """log p(action) [...] for action [...]; of a number that is no action that of a mask."""
        log_p = log_probs(self.logits)
        number = log_p.shape[-1]
        # A one-hot sum: the gradient of a gather is a scatter, which is slow.
        chosen = jax.nn.one_hot(action, number, dtype=log_p.dtype)
        return jnp.where((action >= 0) & (action < number), jnp.sum(chosen * log_p, axis=-1), MASK)

    def entropy(self) -> jax.Array:
        """-sum p log p [...], nats."""
        log_p = log_probs(self.logits)
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    def kl(self, other: "Categorical") -> jax.Array:
        """KL(self || other) = sum p (log p - log q) [...], nats; of nearly equal ones too.

        What only `other` masks costs about 1e9 nats times its probability here.
        """
        log_p, log_q = log_probs(self.logits), log_probs(other.logits)
        return jnp.sum(_excess(log_p, log_q), axis=-1)

    def cross_entropy(self, other: "Categorical") -> jax.Array:
        """H(self, other) = -sum p log q [...], nats: the KL plus the entropy."""
        return self.kl(other) + self.entropy()

    def temper(self, temperature: float | jax.Array) -> "Categorical":
        """p^(1/temperature), renormalised: logits / temperature; masks stay masks."""
        # Both sides are selected from: -inf / temperature has no gradient in the temperature.
        may = legal(self.logits)
        divided = jnp.where(may, self.logits, 0.0) / temperature
        return Categorical(jnp.where(may, divided, MASK))


def _excess(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """p log(p / q) - p + q >= 0, elementwise; over all actions it sums to KL(p || q).

    No term is negative, so that nothing cancels: in float32 sum p log(p / q) is rounding alone once
    the KL is below 1e-7, as it is at a high temperature.
    """
    p, ratio = jnp.exp(log_p), log_p - log_q
    near = jnp.abs(ratio) < _NEAR
    r = jnp.where(near, ratio, 0.0)  # r + exp(-r) - 1
    series = jnp.square(r) * (1 / 2 - r * (1 / 6 - r * (1 / 24 - r * (1 / 120 - r / 720))))
    return jnp.where(near, p * series, p * ratio - p + jnp.exp(log_q))


@struct.dataclass
class TopK:
    """A choice among A actions of which the k most probable ones are known one by one.

    What is left is one more outcome, "another one". Divergences are those on these k + 1 outcomes:
    never above the ones on all A (data processing), and equal to them at k = A - 1. It is what is
    kept of a teacher with a large vocabulary, `networks.top_k`.

    >>> top = TopK.of(Categorical(jnp.log(jnp.array([0.1, 0.6, 0.3]))), 1)
    >>> jnp.exp(top.log_p).round(3).tolist(), top.action.tolist(), jnp.exp(top.rest).round(3).item()
    ([0.6000000238418579], [1], 0.4000000059604645)
    """

    log_p: jax.Array  # [..., k], the largest first
    action: jax.Array  # int32 [..., k]
    rest: jax.Array  # [...], log of the probability of all others; about -1e9 where they have none
    number: int = struct.field(pytree_node=False)  # A

    @staticmethod
    def of(policy: "Categorical", k: int) -> "TopK":
        """The top k of a Categorical, k < A."""
        logits = full_precision(policy.logits)
        action = jax.lax.top_k(logits, k)[1].astype(jnp.int32)
        outcomes = _outcomes(logits, action)
        return TopK(outcomes[..., :-1], action, outcomes[..., -1], logits.shape[-1])

    def outcomes(self) -> Categorical:
        """As a choice among its k + 1 outcomes."""
        return Categorical(jnp.concatenate([self.log_p, self.rest[..., None]], axis=-1))

    def seen_by(self, other: Categorical) -> Categorical:
        """What another policy [..., A] thinks of the same k + 1 outcomes."""
        return Categorical(_outcomes(full_precision(other.logits), self.action))

    def mode(self) -> jax.Array:
        """The most probable action [...], int32."""
        return self.action[..., 0]

    def kl(self, other: Categorical) -> jax.Array:
        """KL(self || other) [...] on the k + 1 outcomes, nats."""
        return self.outcomes().kl(self.seen_by(other))

    def temper(self, temperature: float | jax.Array) -> "TopK":
        """Itself at temperature 1; nothing is known of the others at another one."""
        if isinstance(temperature, int | float) and temperature == 1:
            return self
        raise UsageError(
            "the top k of a policy have no temperature: what lies behind them is not known. Temper "
            "the policy before, networks.top_k(networks.temper(teacher, 2.0), k), and the student."
        )


def _outcomes(logits: jax.Array, action: jax.Array) -> jax.Array:
    """log p [..., k + 1] of these actions [..., k] and of all others together; finite."""
    log_p = log_probs(logits)
    chosen = jnp.take_along_axis(log_p, action, axis=-1)
    known = jnp.put_along_axis(jnp.zeros(log_p.shape, bool), action, True, axis=-1, inplace=False)
    # -1e9 and not -inf stands for the known ones: the gradient is finite where nothing is left
    rest = jax.nn.logsumexp(jnp.where(known, MASK, log_p), axis=-1, keepdims=True)
    return jnp.concatenate([chosen, jnp.maximum(rest, MASK)], axis=-1)


def num_actions(policy: object) -> int | None:
    """A of a choice among A actions; None of continuous ones."""
    if isinstance(policy, TopK):
        return policy.number
    logits = getattr(policy, "logits", None)
    return None if logits is None else logits.shape[-1]


class Normal(NamedTuple):
    """Independent normals over D dimensions, unbounded.

    The environment adapter clips the action, and log_prob is of the sample before it. A `log_std`
    outside of [-10, 10] counts as the nearer end, and has no gradient there.

    >>> Normal(jnp.zeros(2), jnp.zeros(2)).kl(Normal(jnp.ones(2), jnp.zeros(2)))
    Array(1., dtype=float32)
    """

    mean: jax.Array  # [..., D]
    log_std: jax.Array  # [..., D]

    def sample(self, key: jax.Array) -> jax.Array:
        """An action [..., D]."""
        mean = full_precision(self.mean)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        return mean + jnp.exp(_bounded(self.log_std)) * noise

    def mode(self) -> jax.Array:
        """The mean [..., D]."""
        return self.mean

    def log_prob(self, action: jax.Array) -> jax.Array:
        """log density of action [..., D], summed over D."""
        log_std = _bounded(self.log_std)
        z = (action - full_precision(self.mean)) * jnp.exp(-log_std)
        return -jnp.sum(0.5 * jnp.square(z) + log_std + 0.5 * jnp.log(2 * jnp.pi), axis=-1)

    def entropy(self) -> jax.Array:
        """Differential entropy [...], nats, summed over D."""
        return jnp.sum(_bounded(self.log_std) + 0.5 * jnp.log(2 * jnp.pi * jnp.e), axis=-1)

    def kl(self, other: "Normal") -> jax.Array:
        """KL(self || other) [...], nats, summed over D."""
        ours, theirs = _bounded(self.log_std), _bounded(other.log_std)
        twice = 2 * (ours - theirs)
        shift = jnp.square(
            (full_precision(self.mean) - full_precision(other.mean)) * jnp.exp(-theirs)
        )
        # expm1, because nearly equal deviations would leave nothing but rounding
        return 0.5 * jnp.sum(jnp.expm1(twice) - twice + shift, axis=-1)

    def cross_entropy(self, other: "Normal") -> jax.Array:
        """H(self, other) = -E_p log q [...], nats: the KL plus the entropy."""
        return self.kl(other) + self.entropy()

    def temper(self, temperature: float | jax.Array) -> "Normal":
        """p^(1/temperature), renormalised: the variance times the temperature."""
        return Normal(self.mean, self.log_std + 0.5 * jnp.log(temperature))


def _bounded(log_std: jax.Array) -> jax.Array:
    return jnp.clip(full_precision(log_std), -_LOG_STD, _LOG_STD)
