"""Distributions: numbers by hand, float64 numpy, scipy and distrax; identities of the KL; masked
actions.
"""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from jaxkd.distributions import Categorical, Normal, legal

RNG = np.random.default_rng(0)
LOGITS, OTHER_LOGITS = 4 * RNG.normal(size=(2, 5, 3, 4)).astype(np.float32)
MEAN, LOG_STD, OTHER_MEAN, OTHER_LOG_STD = RNG.normal(size=(4, 5, 3, 2)).astype(np.float32)
ACTION, VECTOR = RNG.integers(4, size=(5, 3)), RNG.normal(size=(5, 3, 2)).astype(np.float32)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_categorical_by_hand():
    p, uniform = Categorical(jnp.log(jnp.array([0.5, 0.25, 0.25])) + 7.0), Categorical(jnp.zeros(3))
    np.testing.assert_allclose(p.log_prob(jnp.int32(1)), np.log(0.25), rtol=1e-6)
    np.testing.assert_allclose(p.entropy(), 1.5 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(p.kl(uniform), np.log(3) - 1.5 * np.log(2), rtol=1e-5)
    np.testing.assert_allclose(uniform.kl(p), -np.log(3) + 5 / 3 * np.log(2), rtol=1e-5)
    np.testing.assert_allclose(
        jax.nn.softmax(p.temper(0.5).logits), np.array([4, 1, 1]) / 6, rtol=1e-6
    )
    assert (
        p.mode() == 0
        and uniform.mode() == 0
        and Categorical(jnp.array([0.0, 2.0, 2.0])).mode() == 1
    )
    assert p.mode().dtype == p.sample(jax.random.key(0)).dtype == jnp.int32


def test_categorical_in_float64_and_as_distrax():
    p, q = Categorical(jnp.asarray(LOGITS)), Categorical(jnp.asarray(OTHER_LOGITS))
    log_p, log_q = log_softmax(LOGITS), log_softmax(OTHER_LOGITS)
    expected = (
        np.take_along_axis(log_p, ACTION[..., None], -1)[..., 0],
        -(np.exp(log_p) * log_p).sum(-1),
        (np.exp(log_p) * (log_p - log_q)).sum(-1),
    )
    ours = p.log_prob(jnp.asarray(ACTION)), p.entropy(), p.kl(q)
    a, b = distrax.Categorical(LOGITS), distrax.Categorical(OTHER_LOGITS)
    with jax.numpy_rank_promotion("allow"):
        theirs = a.log_prob(ACTION), a.entropy(), a.kl_divergence(b)
    for mine, exact, other in zip(ours, expected, theirs, strict=True):
        assert mine.shape == (5, 3) and mine.dtype == jnp.float32
        np.testing.assert_allclose(mine, exact, rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=2e-6)
    np.testing.assert_array_equal(p.mode(), LOGITS.argmax(-1))


def test_normal_by_hand():
    p = Normal(jnp.array([1.0, -1.0]), jnp.log(jnp.array([1.0, 2.0])))
    np.testing.assert_allclose(
        p.log_prob(jnp.array([2.0, 1.0])), -1.0 - np.log(2 * np.pi) - np.log(2), rtol=1e-6
    )
    np.testing.assert_allclose(p.entropy(), 1 + np.log(2 * np.pi) + np.log(2), rtol=1e-6)
    # One dimension: log(s2 / s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2 with (0, 1) and (1, 2).
    np.testing.assert_allclose(
        Normal(jnp.zeros(1), jnp.zeros(1)).kl(Normal(jnp.ones(1), jnp.log(2.0)[None])),
        np.log(2) + 2 / 8 - 0.5,
        rtol=1e-5,
    )
    np.testing.assert_array_equal(p.mode(), p.mean)


def test_normal_as_scipy_and_distrax():
    p, q = (
        Normal(jnp.asarray(MEAN), jnp.asarray(LOG_STD)),
        Normal(jnp.asarray(OTHER_MEAN), jnp.asarray(OTHER_LOG_STD)),
    )
    oracle = scipy.stats.norm(np.float64(MEAN), np.exp(np.float64(LOG_STD)))
    a = distrax.MultivariateNormalDiag(MEAN, np.exp(LOG_STD))
    b = distrax.MultivariateNormalDiag(OTHER_MEAN, np.exp(OTHER_LOG_STD))
    with jax.numpy_rank_promotion("allow"):
        theirs = a.log_prob(VECTOR), a.entropy(), a.kl_divergence(b)
    for mine, other in zip(
        (p.log_prob(jnp.asarray(VECTOR)), p.entropy(), p.kl(q)), theirs, strict=True
    ):
        assert mine.shape == (5, 3)
        np.testing.assert_allclose(mine, other, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(
        p.log_prob(jnp.asarray(VECTOR)), oracle.logpdf(VECTOR).sum(-1), rtol=1e-5
    )
    np.testing.assert_allclose(p.entropy(), oracle.entropy().sum(-1), rtol=1e-5)


def test_normal_kl_is_the_integral():
    p, q = scipy.stats.norm(0.3, 0.7), scipy.stats.norm(-0.5, 1.3)
    exact = scipy.integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -8, 8)[0]
    ours = Normal(jnp.array([0.3]), jnp.log(jnp.array([0.7]))).kl(
        Normal(jnp.array([-0.5]), jnp.log(jnp.array([1.3])))
    )
    np.testing.assert_allclose(ours, exact, rtol=1e-5)


def test_cross_entropy_is_minus_the_mean_log_prob():
    """H(p, q) = -sum p log q in float64; of normals as distrax and by hand: N(0, 1) under N(1, 2)
    costs log(2 pi 4) / 2 + (1 + 1) / 8.
    """
    p, q = Categorical(jnp.asarray(LOGITS)), Categorical(jnp.asarray(OTHER_LOGITS))
    exact = -(np.exp(log_softmax(LOGITS)) * log_softmax(OTHER_LOGITS)).sum(-1)
    np.testing.assert_allclose(p.cross_entropy(q), exact, rtol=1e-5)
    np.testing.assert_allclose(p.cross_entropy(p), p.entropy(), rtol=1e-5, atol=1e-6)
    by_hand = Normal(jnp.zeros(1), jnp.zeros(1)).cross_entropy(
        Normal(jnp.ones(1), jnp.log(2.0)[None])
    )
    np.testing.assert_allclose(by_hand, 0.5 * np.log(8 * np.pi) + 0.25, rtol=1e-6)
    a = distrax.MultivariateNormalDiag(MEAN, np.exp(LOG_STD))
    b = distrax.MultivariateNormalDiag(OTHER_MEAN, np.exp(OTHER_LOG_STD))
    ours = Normal(jnp.asarray(MEAN), jnp.asarray(LOG_STD)).cross_entropy(
        Normal(jnp.asarray(OTHER_MEAN), jnp.asarray(OTHER_LOG_STD))
    )
    with jax.numpy_rank_promotion("allow"):
        np.testing.assert_allclose(ours, a.cross_entropy(b), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.25, 3.0])
def test_temper_divides_differences_of_log_probs(temperature):
    """p^(1/T) renormalised: log p(a) - log p(b) is divided by T."""
    p, normal = Categorical(jnp.asarray(LOGITS)), Normal(jnp.asarray(MEAN), jnp.asarray(LOG_STD))
    one = jnp.ones((5, 3), jnp.int32)
    for dist, a, b in ((p, one, 0 * one), (normal, jnp.asarray(VECTOR), jnp.zeros((5, 3, 2)))):
        tempered = dist.temper(temperature)
        difference = (dist.log_prob(a) - dist.log_prob(b)) / temperature
        np.testing.assert_allclose(
            tempered.log_prob(a) - tempered.log_prob(b), difference, rtol=1e-4, atol=1e-5
        )
    np.testing.assert_allclose(
        np.exp(normal.temper(temperature).log_std),
        np.exp(LOG_STD) * np.sqrt(temperature),
        rtol=1e-5,
    )


def test_samples_follow_the_probabilities(key):
    n, p = 100_000, np.array([0.6, 0.3, 0.1, 0.0])
    drawn = Categorical(
        jnp.broadcast_to(jnp.array([*np.log(p[:3]), -1e9], jnp.float32), (n, 4))
    ).sample(key)
    frequency = np.bincount(drawn, minlength=4) / n
    assert np.all(np.abs(frequency - p) <= 5 * np.sqrt(p * (1 - p) / n))  # the masked action: never
    mean, std = np.array([1.0, -2.0]), np.array([0.5, 3.0])
    drawn = np.asarray(Normal(jnp.tile(mean, (n, 1)), jnp.tile(np.log(std), (n, 1))).sample(key))
    assert np.all(np.abs(drawn.mean(0) - mean) < 5 * std / np.sqrt(n))
    assert np.all(np.abs(drawn.std(0) - std) < 5 * std / np.sqrt(2 * n))
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 5 / np.sqrt(n)


@pytest.mark.parametrize(
    "p",
    [Categorical(jnp.asarray(LOGITS)), Normal(jnp.asarray(MEAN), jnp.asarray(LOG_STD))],
    ids=["categorical", "normal"],
)
def test_kl_to_itself_is_a_flat_zero(p):
    np.testing.assert_allclose(p.kl(p), 0, atol=1e-6)
    for gradient in jax.grad(lambda p, q: jnp.sum(p.kl(q)), argnums=(0, 1))(p, p):
        jax.tree.map(lambda g: np.testing.assert_allclose(g, 0, atol=1e-6), gradient)
    moved = jax.tree.map(lambda x: x.at[..., 0].add(0.5), p)
    assert p.kl(moved).max() > 1e-2
    assert jax.tree.leaves(jax.grad(lambda q: jnp.sum(p.kl(q)))(moved))[0].max() > 1e-2


def test_gradient_of_the_forward_kl_is_softmax_minus_p():
    p, z = Categorical(jnp.asarray(LOGITS)), jnp.asarray(OTHER_LOGITS)
    gradient = jax.grad(lambda z: jnp.sum(p.kl(Categorical(z))))(z)
    np.testing.assert_allclose(
        gradient, np.exp(log_softmax(z)) - np.exp(log_softmax(LOGITS)), atol=1e-6
    )


def test_masked_actions_stay_finite():
    """An illegal action has logit -1e9: it costs nothing where both mask it, and nothing becomes
    nan.
    """
    free, masked = jnp.array([0.3, -0.2]), jnp.array([0.3, -0.2, -1e9])
    p, q = Categorical(masked), Categorical(jnp.array([-1.0, 0.5, -1e9]))
    np.testing.assert_allclose(p.entropy(), Categorical(free).entropy(), rtol=1e-6)
    np.testing.assert_allclose(
        p.kl(q), Categorical(free).kl(Categorical(jnp.array([-1.0, 0.5]))), rtol=1e-6
    )
    assert p.mode() == 0
    open_ = Categorical(jnp.zeros(3))

    def everything(logits):
        p = Categorical(logits)
        values = (
            p.entropy(),
            p.kl(q),
            q.kl(p),
            p.kl(open_),
            open_.kl(p),
            p.log_prob(jnp.int32(2)),
            p.temper(0.01).entropy(),
        )
        values = (
            *values,
            p.cross_entropy(q),
            q.cross_entropy(p),
            p.cross_entropy(open_),
            open_.cross_entropy(p),
        )
        return jnp.sum(jnp.stack(values)), jnp.stack(values)

    gradient, values = jax.grad(everything, has_aux=True)(masked)
    assert np.isfinite(values).all() and np.isfinite(gradient).all()


def test_a_mask_of_minus_infinity_is_a_mask():
    """Fault A5: [0, 0, -inf] gave nan for its entropy, its log-probability and its KL."""
    p, q = Categorical(jnp.array([0, 0, -jnp.inf])), Categorical(jnp.array([0, 1, -jnp.inf]))
    np.testing.assert_allclose(p.entropy(), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(p.log_prob(jnp.int32(1)), -np.log(2), rtol=1e-6)
    np.testing.assert_allclose(p.kl(q), 0.1201, atol=1e-4)
    np.testing.assert_allclose(p.cross_entropy(q), np.log(2) + 0.1201, atol=1e-4)
    assert p.log_prob(jnp.int32(2)) < -1e8 and jnp.isfinite(p.log_prob(jnp.int32(2)))

    def everything(logits, temperature):
        p = Categorical(logits).temper(temperature)
        return p.entropy() + p.log_prob(jnp.int32(0)) + p.kl(q) + q.kl(p) + p.cross_entropy(q)

    slopes = jax.grad(everything, argnums=(0, 1))(p.logits, 2.0)
    assert all(np.isfinite(x).all() for x in slopes) and slopes[0][2] == 0
    samples = jax.vmap(p.sample)(jax.random.split(jax.random.key(0), 200))
    assert samples.max() == 1


@pytest.mark.parametrize("mask", [-1e9, -jnp.inf])
@pytest.mark.parametrize("temperature", [0.01, 1.0, 11.0, 1e6])
def test_a_mask_stays_a_mask_at_every_temperature(mask, temperature):
    """Fault A7: -1e9 divided by 11 lay above -1e8, and counted as an action that may be taken."""
    hot = Categorical(jnp.array([1.0, 2.0, mask])).temper(temperature)
    twice = hot.temper(temperature)
    for p in (hot, twice):
        np.testing.assert_array_equal(legal(p.logits), [True, True, False])
    np.testing.assert_allclose(hot.logits[:2], np.array([1, 2]) / temperature, rtol=1e-6)


def test_a_logit_is_a_mask_by_its_distance_to_the_largest():
    np.testing.assert_array_equal(legal(jnp.array([-3e8, -3e8])), [True, True])
    np.testing.assert_array_equal(
        legal(jnp.array([1e6, 1e6 - 1e9, -jnp.inf])), [True, False, False]
    )
    assert np.isfinite(Categorical(jnp.full(3, -jnp.inf)).entropy())  # nothing may be done: no nan


@pytest.mark.parametrize("temperature", [1.0, 30.0, 1000.0])
def test_the_kl_of_nearly_equal_policies(temperature):
    """E6: at T = 1000 the float32 KL times T^2 was .2261, right .1728."""
    p, q = Categorical(jnp.asarray(LOGITS)), Categorical(jnp.asarray(OTHER_LOGITS))
    for a, b, x, y in ((p, q, LOGITS, OTHER_LOGITS), (q, p, OTHER_LOGITS, LOGITS)):
        log_a, log_b = (log_softmax(np.float64(z) / temperature) for z in (x, y))
        exact = (np.exp(log_a) * (log_a - log_b)).sum(-1)
        tempered = a.temper(temperature), b.temper(temperature)
        np.testing.assert_allclose(tempered[0].kl(tempered[1]), exact, rtol=2e-3)
    p = Normal(jnp.asarray(MEAN), jnp.asarray(LOG_STD))
    q = Normal(p.mean, p.log_std + 0.01 / temperature**0.5)
    apart = np.float64(p.log_std) - np.float64(q.log_std)
    exact = 0.5 * (np.expm1(2 * apart) - 2 * apart).sum(-1)
    np.testing.assert_allclose(p.kl(q), exact, rtol=2e-3)


def test_deviations_too_small_or_large_for_float32():
    """A12: log_prob of Normal(0, e^-110) at 0 was nan, and so were its gradients."""
    action = jnp.array([0.0, 1e-3])

    @jax.jit
    def everything(p, q):
        def found(p):
            return jnp.stack([p.log_prob(action), p.entropy(), p.kl(q), q.kl(p)])

        return found(p), jax.jacrev(found)(p), p.sample(jax.random.key(0))

    for log_std, counts in ((-110.0, -10.0), (-10.5, -10.0), (90.0, 10.0), (-3.0, -3.0)):
        p, same = (Normal(jnp.zeros(2), jnp.full(2, x)) for x in (log_std, counts))
        q = Normal(jnp.ones(2), jnp.full(2, -log_std))
        values, slopes, sample = everything(p, q)
        np.testing.assert_array_equal(values, everything(same, q)[0])
        assert all(np.isfinite(x).all() for x in (values, *slopes, sample))
        assert (np.abs(slopes.log_std).max() > 0) == (log_std == counts)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_full(dtype):
    """bfloat16 gave 3.81 for an entropy of 3.83, float16 nan with a mask of -1e9 or -inf."""
    z, w = (np.random.default_rng(0).normal(size=(2, 4, 1000)) * 3).astype(np.float32)
    p, q = Categorical(jnp.asarray(z, dtype)), Categorical(jnp.asarray(w, dtype))
    log_p, log_q = (log_softmax(np.asarray(x.logits, np.float32)) for x in (p, q))
    action = jnp.arange(4)
    exact = [
        -(np.exp(log_p) * log_p).sum(-1),
        (np.exp(log_p) * (log_p - log_q)).sum(-1),
        log_p[np.arange(4), np.arange(4)],
    ]
    for found, wanted in zip((p.entropy(), p.kl(q), p.log_prob(action)), exact, strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    masked = Categorical(jnp.array([0.0, 1.0, -np.inf], dtype))
    np.testing.assert_allclose(masked.entropy(), 0.5822, atol=1e-4)
    np.testing.assert_array_equal(legal(masked.logits), [True, True, False])
    a, b = (Normal(jnp.asarray(x, dtype), jnp.asarray(x / 3, dtype)) for x in (z[:, :4], w[:, :4]))
    exact = [jax.tree.map(lambda x: x.astype(jnp.float32), p) for p in (a, b)]
    np.testing.assert_array_equal(a.kl(b), exact[0].kl(exact[1]))
    np.testing.assert_array_equal(a.sample(jax.random.key(0)), exact[0].sample(jax.random.key(0)))


@pytest.mark.parametrize("action", [-1, 3, 1000])
def test_what_is_no_action_has_the_log_prob_of_a_mask(action):
    """It was 0, a probability of 1: a label of another game, or padding, cost nothing."""
    p = Categorical(jnp.array([0.0, 1.0, 2.0]))
    value, slope = jax.value_and_grad(lambda z: Categorical(z).log_prob(jnp.int32(action)))(
        p.logits
    )
    assert value == np.float32(-1e9)
    np.testing.assert_array_equal(slope, 0)
