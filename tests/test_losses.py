"""Loss terms: closed forms, numbers by hand, rlax; what the combinators scale, gate and stop; the
engine's weighted mean.
"""

from functools import partial

import batches
import distrax
import hypothesis
import hypothesis.extra.numpy
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rlax
import scipy.spatial.distance
import scipy.special

import jaxkd
from jaxkd import description, losses, networks, optimize
from jaxkd.base import Context, LossTerm, Outputs, Policy, UsageError
from jaxkd.distributions import Categorical, Normal

L, N, A = 3, 4, 5
RNG = np.random.default_rng(1)
Z, V = 2 * RNG.normal(size=(2, L, N, A)).astype(np.float32)  # logits of student and teacher
VALUE, OTHER = RNG.normal(size=(2, L, N)).astype(np.float32)


batch = partial(batches.batch, shape=(L, N), weight=1.0)


def context(update=0) -> Context:
    return Context(jnp.int32(update), jnp.float32(0), (), jax.random.key(0))


def loss_of(term, student, batch, update=0):
    term = term if isinstance(term, LossTerm) else losses.stateless(term)
    return term.loss(term.init(jax.random.key(0), None), student, batch, context(update))


def softmax(logits):
    logits = np.asarray(logits, np.float64)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return (p * (np.log(p) - np.log(q))).sum(-1)


# --- distillation --------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [1.0, 4.0, lambda update: 2.0 + update], ids=["1", "4", "schedule"])
def test_kl_is_temperature_squared_times_the_tempered_kl(t):
    """At update 3 the schedule says 5; the factor T^2 is Hinton's."""
    student, data = (
        Outputs(Categorical(jnp.asarray(Z))),
        batch(teacher=Outputs(Categorical(jnp.asarray(V)))),
    )
    value = t(3) if callable(t) else t
    ours, theirs = softmax(Z / value), softmax(V / value)
    forward, reverse = (
        loss_of(make(t), student, data, update=3) for make in (losses.forward_kl, losses.reverse_kl)
    )
    assert forward.shape == reverse.shape == (L, N)
    np.testing.assert_allclose(forward, value**2 * kl(theirs, ours), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(reverse, value**2 * kl(ours, theirs), rtol=1e-4, atol=1e-5)
    assert np.abs(forward - reverse).max() > 0.05


def test_hot_kl_matches_logits():
    """T -> infinity: the gradient of T^2 KL is (z - v) / A for zero-mean logits (Hinton et al.
    2015, eq. 4); without T^2 it were 0.
    """
    z, v = Z - Z.mean(-1, keepdims=True), V - V.mean(-1, keepdims=True)
    data = batch(teacher=Outputs(Categorical(jnp.asarray(v))))
    for make in (losses.forward_kl, losses.reverse_kl):
        gradient = jax.grad(
            lambda z, make=make: jnp.sum(loss_of(make(400.0), Outputs(Categorical(z)), data))
        )(jnp.asarray(z))
        np.testing.assert_allclose(gradient, (z - v) / A, atol=0.02)


def test_tempered_teacher_alone_is_sharpened():
    """Rusu et al. 2015: softmax(q / 0.01) against the student's plain softmax."""
    network = Policy(
        init=lambda key: (),
        initial_carry=lambda n: (),
        step=lambda params, carry, obs, reset: (carry, Outputs(Categorical(obs))),
        unroll=lambda params, carry, obs, reset: (carry, Outputs(Categorical(obs))),
    )
    q = V / 100
    for call in (networks.temper(network, 0.01).step, networks.temper(network, 0.01).unroll):
        teacher = call((), (), jnp.asarray(q), None)[1]
        loss = loss_of(
            losses.forward_kl(), Outputs(Categorical(jnp.asarray(Z))), batch(teacher=teacher)
        )
        np.testing.assert_allclose(loss, kl(softmax(q / 0.01), softmax(Z)), rtol=1e-4, atol=1e-5)


def test_kl_of_normals_goes_in_its_direction():
    wide, narrow = (
        Normal(jnp.zeros((L, N, 1)), jnp.full((L, N, 1), jnp.log(2.0))),
        Normal(jnp.zeros((L, N, 1)), jnp.zeros((L, N, 1))),
    )
    data = batch(teacher=Outputs(wide))
    np.testing.assert_allclose(
        loss_of(losses.forward_kl(), Outputs(narrow), data), -np.log(2) + 4 / 2 - 0.5, rtol=1e-5
    )
    np.testing.assert_allclose(
        loss_of(losses.reverse_kl(), Outputs(narrow), data), np.log(2) + 1 / 8 - 0.5, rtol=1e-5
    )
    # E6: the gradient in the mean grows as T, that in log_std as T^2
    near = batch(teacher=Outputs(Normal(narrow.mean + 0.1, wide.log_std)))
    total = lambda p, t: jnp.sum(loss_of(losses.forward_kl(t), Outputs(p), near))
    slopes = [jax.grad(total)(narrow, t) for t in (1.0, 2.0)]
    np.testing.assert_allclose(slopes[1].mean, 2 * slopes[0].mean, rtol=1e-5)
    np.testing.assert_allclose(slopes[1].log_std, 4 * slopes[0].log_std, rtol=0.02)
    # Temper at T doubles both variances: the KL of normals with one mean stays, times T^2.
    np.testing.assert_allclose(
        loss_of(losses.forward_kl(2.0), Outputs(narrow), data),
        4 * (-np.log(2) + 4 / 2 - 0.5),
        rtol=1e-5,
    )


def test_value_mse_and_entropy():
    student = Outputs(Categorical(jnp.asarray(Z)), jnp.asarray(VALUE))
    data = batch(teacher=Outputs((), jnp.asarray(OTHER)))
    np.testing.assert_allclose(
        loss_of(losses.value_mse(), student, data), (VALUE - OTHER) ** 2, rtol=1e-5
    )
    gradient = jax.grad(
        lambda v: jnp.sum(loss_of(losses.value_mse(), student._replace(value=v), data))
    )(student.value)
    np.testing.assert_allclose(gradient, 2 * (VALUE - OTHER), rtol=1e-5)
    p = softmax(Z)
    np.testing.assert_allclose(
        loss_of(losses.entropy(), student, data), (p * np.log(p)).sum(-1), rtol=1e-5
    )


# --- every divergence against its formula in float64 ---------------------------------------------


def skewed(p, q, share):
    """KL(p || share p + (1 - share) q) by scipy."""
    return scipy.special.rel_entr(p, share * p + (1 - share) * q).sum(-1)


def jensen_shannon(p, q, b):
    return b * skewed(p, q, b) + (1 - b) * skewed(q, p, 1 - b)


def standardised(z, t):
    z = np.asarray(z, np.float64)
    return softmax((z - z.mean(-1, keepdims=True)) / (t * z.std(-1, keepdims=True, ddof=1) + 1e-7))


def entropy_of(p):
    return -(p * np.log(p)).sum(-1)


def hard(z, v):
    return -np.take_along_axis(np.log(softmax(z)), v.argmax(-1)[..., None], -1)[..., 0]


CLOSED = {  # name: (term, formula of student logits z and teacher logits v)
    "jsd": (losses.jsd(), lambda z, v: jensen_shannon(softmax(v), softmax(z), 0.5)),
    "jsd 0.9 at 2": (
        losses.jsd(0.9, temperature=2.0),
        lambda z, v: 4 * jensen_shannon(softmax(v / 2), softmax(z / 2), 0.9),
    ),
    "jsd 0.3 normalised": (
        losses.jsd(0.3, normalise=True),
        lambda z, v: jensen_shannon(softmax(v), softmax(z), 0.3) / 0.21,
    ),
    "jsd 0": (losses.jsd(0.0), lambda z, v: np.zeros((L, N))),
    "jsd 1": (losses.jsd(1.0), lambda z, v: np.zeros((L, N))),
    "jsd 0 normalised": (losses.jsd(0.0, normalise=True), lambda z, v: kl(softmax(v), softmax(z))),
    "jsd 1 normalised": (losses.jsd(1.0, normalise=True), lambda z, v: kl(softmax(z), softmax(v))),
    "skew_kl": (losses.skew_kl(0.1), lambda z, v: skewed(softmax(v), softmax(z), 0.1)),
    "skew_reverse_kl": (
        losses.skew_reverse_kl(0.1),
        lambda z, v: skewed(softmax(z), softmax(v), 0.1),
    ),
    "total_variation": (
        losses.total_variation(),
        lambda z, v: 0.5 * np.abs(softmax(z) - softmax(v)).sum(-1),
    ),
    "nll": (losses.nll(), hard),
    "cross_entropy": (
        losses.cross_entropy(),
        lambda z, v: kl(softmax(v), softmax(z)) + entropy_of(softmax(v)),
    ),
    "reverse_cross_entropy": (
        losses.reverse_cross_entropy(),
        lambda z, v: kl(softmax(z), softmax(v)) + entropy_of(softmax(z)),
    ),
    "ce_kd": (
        losses.ce_kd(0.3, 2.0),
        lambda z, v: 0.3 * hard(z, v) + 0.7 * 4 * kl(softmax(v / 2), softmax(z / 2)),
    ),
    "logit_mse": (losses.logit_mse(), lambda z, v: ((np.float64(v) - z) ** 2).sum(-1)),
    "standardised_kl": (
        losses.standardised_kl(0.5),
        lambda z, v: 0.25 * kl(standardised(v, 0.5), standardised(z, 0.5)),
    ),
    "advantage_mse": (
        losses.advantage_mse(normalise=False),
        lambda z, v: ((z - z.max(-1, keepdims=True) - v + v.max(-1, keepdims=True)) ** 2).sum(-1),
    ),
    "advantage_kl": (losses.advantage_kl(0.7), lambda z, v: kl(softmax(v / 0.7), softmax(z / 0.7))),
}
NOT_A_DISTANCE = {
    "nll",
    "cross_entropy",
    "reverse_cross_entropy",
    "ce_kd",
}  # an entropy or a hard label away from one
UNMASKED = {"advantage_mse", "standardised_kl"}  # say so in their docstrings


@jax.jit
def all_closed(z, v):
    """{name: (loss [L, N], its gradient in z [L, N, A])} of every term of CLOSED."""

    def one(term, z):
        loss = term.loss(
            (), Outputs(Categorical(z)), batch(teacher=Outputs(Categorical(v))), context()
        )
        return jnp.sum(loss), loss

    found = {
        name: jax.value_and_grad(lambda z, term=term: one(term, z), has_aux=True)(z)
        for name, (term, _) in CLOSED.items()
    }
    return {name: (loss, gradient) for name, ((_, loss), gradient) in found.items()}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_form(name):
    loss, gradient = all_closed(jnp.asarray(Z), jnp.asarray(V))[name]
    assert loss.shape == (L, N) and loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, CLOSED[name][1](Z, V), rtol=2e-4, atol=2e-6)
    flat = name in ("jsd 0", "jsd 1")
    assert (np.abs(gradient).max() < 1e-6) if flat else (np.abs(gradient).max() > 1e-2)


@pytest.mark.parametrize("name", CLOSED)
def test_gradient_is_the_slope_of_the_formula(name):
    """Central differences of the float64 formula along one direction."""
    direction, h = RNG.normal(size=Z.shape), 1e-5
    formula = CLOSED[name][1]
    slope = (
        formula(Z + h * direction, V.astype(np.float64))
        - formula(Z - h * direction, V.astype(np.float64))
    ) / (2 * h)
    gradient = all_closed(jnp.asarray(Z), jnp.asarray(V))[name][1]
    np.testing.assert_allclose(
        (np.float64(gradient) * direction).sum(-1), slope, rtol=2e-3, atol=2e-4
    )


@pytest.mark.parametrize("name", sorted(set(CLOSED) - NOT_A_DISTANCE))
def test_a_distance_is_a_flat_zero_at_the_teacher(name):
    loss, gradient = all_closed(jnp.asarray(V), jnp.asarray(V))[name]
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=2e-6)


@pytest.mark.parametrize("who", ["both", "student", "teacher"])
def test_masked_actions_give_no_nan(who):
    """Logit -1e9: the last action is illegal for both (and costs nothing), or only one of them
    knows it.
    """
    mask = np.zeros((L, N, A), np.float32)
    mask[..., -1] = -1e9
    z, v = Z + mask * (who != "teacher"), V + mask * (who != "student")
    found = all_closed(jnp.asarray(z), jnp.asarray(v))
    for name, (loss, gradient) in found.items():
        assert np.isfinite(loss).all() and np.isfinite(gradient).all(), name
    if who == "both":
        for name in sorted(set(CLOSED) - UNMASKED):
            np.testing.assert_allclose(
                found[name][0],
                CLOSED[name][1](Z[..., :-1], V[..., :-1]),
                rtol=2e-4,
                atol=2e-6,
                err_msg=name,
            )
    if (
        who == "student"
        # what the teacher does there costs a bounded amount in a mixture, and almost 1e9 nats in
        # the forward KL
    ):
        assert np.all(found["skew_kl"][0] < -np.log(0.1)) and np.all(found["jsd"][0] < np.log(2))
        assert np.all(found["cross_entropy"][0] > 1e3)


@hypothesis.settings(max_examples=25, deadline=None, database=None, derandomize=True)
@hypothesis.given(
    hypothesis.extra.numpy.arrays(
        np.float32, (2, L, N, A), elements=dict(min_value=-200, max_value=200)
    )
)
def test_bounds(logits):
    """0 <= JSD <= log 2, TV in [0, 1], Pinsker's TV^2 <= KL / 2, skew KLs at most -log a, for
    peaked and tied logits alike.
    """
    found = {
        name: np.asarray(loss, np.float64)
        for name, (loss, _) in all_closed(*map(jnp.asarray, logits)).items()
    }
    assert all(np.isfinite(loss).all() for loss in found.values())
    assert found["jsd"].min() > -1e-5 and found["jsd"].max() < np.log(2) + 1e-5
    assert found["total_variation"].min() >= 0 and found["total_variation"].max() < 1 + 1e-5
    assert np.all(found["total_variation"] ** 2 <= found["jsd 0 normalised"] / 2 + 1e-5)
    assert max(found["skew_kl"].max(), found["skew_reverse_kl"].max()) < -np.log(0.1) + 1e-5


def test_divergences_as_scipy_and_rlax_and_distrax():
    found = {name: loss for name, (loss, _) in all_closed(jnp.asarray(Z), jnp.asarray(V)).items()}
    np.testing.assert_allclose(
        found["jsd"],
        scipy.spatial.distance.jensenshannon(softmax(Z), softmax(V), axis=-1) ** 2,
        rtol=1e-4,
    )
    with jax.numpy_rank_promotion("allow"):
        teacher = distrax.Categorical(V)
        np.testing.assert_allclose(
            found["cross_entropy"], teacher.cross_entropy(distrax.Categorical(Z)), rtol=1e-5
        )
        np.testing.assert_allclose(
            found["reverse_cross_entropy"], distrax.Categorical(Z).cross_entropy(teacher), rtol=1e-4
        )
        np.testing.assert_allclose(
            found["cross_entropy"],
            rlax.categorical_cross_entropy(softmax(V).astype(np.float32), Z),
            rtol=1e-5,
        )
        rlax_kl = rlax.categorical_kl_divergence(jnp.asarray(V), jnp.asarray(Z), temperature=0.7)
    np.testing.assert_allclose(found["advantage_kl"], rlax_kl, rtol=1e-4)


def test_jsd_fades_to_the_kl_and_the_normalised_one_is_continuous():
    """In float64: JSD(b) / b is the forward KL within 1 % at b = 1e-4, the normalised one runs to
    its limits.
    """
    with jax.enable_x64(True):
        z, v = jnp.asarray(Z / 2, jnp.float64), jnp.asarray(V / 2, jnp.float64)

        @jax.jit
        def both(b):
            student, data = Outputs(Categorical(z)), batch(teacher=Outputs(Categorical(v)))
            return tuple(
                losses.jsd(b, normalise=n).loss((), student, data, context()) for n in (False, True)
            )

        forward, reverse = kl(softmax(V / 2), softmax(Z / 2)), kl(softmax(Z / 2), softmax(V / 2))
        b = 1e-4
        np.testing.assert_allclose(both(b)[0] / b, forward, rtol=0.01)
        np.testing.assert_allclose(both(1 - b)[0] / b, reverse, rtol=0.01)
        for edge, limit in ((0.0, forward), (1.0, reverse)):
            np.testing.assert_allclose(both(edge)[1], limit, rtol=1e-9)
            np.testing.assert_allclose(both(abs(edge - 1e-9))[1], limit, rtol=1e-6)
        slopes = jax.jit(jax.jacrev(lambda b: jnp.stack([x.sum() for x in both(b)])))
        assert np.isfinite(slopes(0.0)).all() and np.isfinite(slopes(1.0)).all()


@pytest.mark.parametrize("z, v", [([0, 0, 0], [10, -10, 0]), ([10, 0, -10], [-10, 0, 10])])
def test_the_normalised_jsd_has_no_jump(z, v):
    """E5: at a deviation of 20 it leapt from 7.91 at b = .001 to the forward KL, 20, at .00099."""
    data = batch(shape=(1, 1), teacher=Outputs(Categorical(jnp.array([[v]], jnp.float32))))
    student = Outputs(Categorical(jnp.array([[z]], jnp.float32)))
    at = jax.jit(lambda b: loss_of(losses.jsd(b, normalise=True), student, data)[0, 0])
    p, q = softmax(v), softmax(z)
    for b in (1e-6, 1e-4, 0.00099, 0.00101, 0.3, 0.9989, 0.9991, 1 - 2**-20):
        b = float(np.float32(b))
        exact = jensen_shannon(p, q, b) / (b * (1 - b))
        np.testing.assert_allclose(at(b), exact, rtol=2e-5)
    np.testing.assert_allclose([at(0.0), at(1.0)], [kl(p, q), kl(q, p)], rtol=1e-5)


def test_a_skewed_kl_without_skew_is_the_kl():
    """E5: skew_kl(0) was 87.3 without a gradient where the forward KL is 200."""
    z, v = jnp.array([[[200.0, 0.0]]]), jnp.array([[[0.0, 200.0]]])
    data = batch(shape=(1, 1), teacher=Outputs(Categorical(v)))
    pairs = {
        losses.skew_kl(0.0): losses.forward_kl(),
        losses.skew_reverse_kl(0.0): losses.reverse_kl(),
        losses.jsd(0.0, normalise=True): losses.forward_kl(),
        losses.jsd(1.0, normalise=True): losses.reverse_kl(),
    }
    for skewed_, plain in pairs.items():
        total = lambda z, term: jnp.sum(loss_of(term, Outputs(Categorical(z)), data))
        (one, slope), (other, wanted) = (
            jax.value_and_grad(total)(z, term) for term in (skewed_, plain)
        )
        assert one == other == 200
        np.testing.assert_allclose(slope, wanted, atol=1e-6)


def test_standardised_kl_with_two_actions():
    """Two standardised logits are -+0.71 / T: the term is refused, or goes on at one of two values
    without a gradient.
    """
    z, v = jnp.array([[[0.3, 0.1], [-4.0, 9.0]]]), jnp.array([[[5.0, 1.0], [5.0, 1.0]]])
    data = batch(shape=(1, 2), teacher=Outputs(Categorical(v)))
    with pytest.raises(
        UsageError,
        match=r"no gradient with 2 actions.*-0.71 and 0.71.*forward_kl, or allow_two=True",
    ):
        loss_of(losses.standardised_kl(), Outputs(Categorical(z)), data)
    term = losses.standardised_kl(1.0, allow_two=True)
    p = softmax(np.array([1, -1]) / np.sqrt(2))
    np.testing.assert_allclose(
        loss_of(term, Outputs(Categorical(z)), data), [[0, kl(p, p[::-1])]], atol=1e-5
    )
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(loss_of(term, Outputs(Categorical(z)), data))))
    np.testing.assert_allclose(gradient(z), 0, atol=1e-5)
    assert np.isfinite(gradient(jnp.ones_like(z))).all()  # all logits equal: std 0


NORMAL = Normal(jnp.zeros((L, N, 2)), jnp.zeros((L, N, 2)))
DISCRETE = {
    "jsd": (losses.jsd(), "forward_kl or reverse_kl"),
    "skew_kl": (losses.skew_kl(), "forward_kl"),
    "skew_reverse_kl": (losses.skew_reverse_kl(), "reverse_kl"),
    "total_variation": (losses.total_variation(), "forward_kl"),
    "logit_mse": (losses.logit_mse(), "forward_kl"),
    "standardised_kl": (losses.standardised_kl(), "forward_kl"),
    "q_mse": (losses.q_mse(), "td_mse"),
    "advantage_mse": (losses.advantage_mse(), "forward_kl"),
    "advantage_kl": (losses.advantage_kl(), "forward_kl"),
    "action_gap": (losses.gate(losses.action_gap(), losses.forward_kl()), "agreement"),
    "confidence": (losses.gate(losses.confidence(), losses.forward_kl()), "agreement"),
}


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_terms_refuse_normals_in_one_line(name):
    term, instead = DISCRETE[name]
    with pytest.raises(UsageError) as error:
        loss_of(term, Outputs(NORMAL), batch(teacher=Outputs(NORMAL)))
    message = str(error.value)
    assert (
        "discrete actions" in message
        and "Normal" in message
        and f"Use {instead}." in message
        and "\n" not in message
    )


def test_discrete_terms_are_refused_by_distill():
    env = jaxkd.envs.make("Pendulum-v1", num_envs=2)
    policy = networks.mlp(env, (2,))
    with pytest.raises(
        UsageError,
        match=r"loss 'mixed': it is for discrete actions, but the student's policy is a Normal",
    ):
        jaxkd.distill(
            env, policy, policy, losses={"mixed": losses.jsd()}, num_minibatches=1, unroll_length=2
        )


def test_normals_have_a_hard_label_and_cross_entropies():
    """-log N(1; 0, 1) twice is log(2 pi) + 1; H(T || S) of equal normals is their entropy."""
    teacher = NORMAL._replace(mean=jnp.ones((L, N, 2)))
    data = batch(teacher=Outputs(teacher))
    np.testing.assert_allclose(
        loss_of(losses.nll(), Outputs(NORMAL), data), np.log(2 * np.pi) + 1, rtol=1e-6
    )
    entropy = np.log(2 * np.pi * np.e)
    for term in (losses.cross_entropy(), losses.reverse_cross_entropy()):
        np.testing.assert_allclose(loss_of(term, Outputs(teacher), data), entropy, rtol=1e-6)
        np.testing.assert_allclose(loss_of(term, Outputs(NORMAL), data), entropy + 1, rtol=1e-6)
    mixed = (
        0.25 * (np.log(2 * np.pi) + 1) + 0.75 * 4 * 0.5
    )  # the KL of both tempered at 2 is 1 / 2, times T^2
    np.testing.assert_allclose(
        loss_of(losses.ce_kd(0.25, 2.0), Outputs(NORMAL), data), mixed, rtol=1e-6
    )


# --- values and features -------------------------------------------------------------------------


def test_actions_are_cloned_by_their_means():
    """As torch's mse_loss and huber_loss of the means, which rsl_rl distils with; by hand."""
    ours, theirs = jnp.array([[[0.5, 3.0]]]), jnp.array([[[0.0, 0.0]]])
    log_std = jnp.full((1, 1, 2), -1.0)
    data = batch(shape=(1, 1), teacher=Outputs(Normal(theirs, log_std)))

    def value(mean, log_std, delta):
        student = Outputs(Normal(mean, log_std))
        return loss_of(losses.action_mse(delta), student, data)[0, 0]

    for delta, loss, slope in (
        (None, (0.25 + 9) / 2, [0.5, 3.0]),
        (1.0, (0.125 + 2.5) / 2, [0.25, 0.5]),
        (2.0, (0.125 + 4.0) / 2, [0.25, 1.0]),
    ):
        found, slopes = jax.value_and_grad(value, argnums=(0, 1))(ours, log_std, delta)
        np.testing.assert_allclose(found, loss, rtol=1e-6)
        np.testing.assert_allclose(slopes[0][0, 0], slope, rtol=1e-6)
        np.testing.assert_array_equal(slopes[1], 0)
        if delta is not None:
            np.testing.assert_allclose(found, optax.huber_loss(ours, theirs, delta=delta).mean())
    discrete = Outputs(Categorical(jnp.zeros((1, 1, 2))))
    with pytest.raises(UsageError, match=r"continuous actions, but the student.*Use nll"):
        loss_of(losses.action_mse(), discrete, data)


def test_value_mse_in_units_of_the_teachers_spread():
    """V_T = 2 and 6 (a third one has no weight): variance 4, so errors of 2 and 1 cost 4 / 4 and 1
    / 4.
    """
    data = batch(
        shape=(1, 3), teacher=Outputs((), jnp.array([[2.0, 6.0, 100.0]])), weight=[[1, 1, 0]]
    )
    student = Outputs((), jnp.array([[4.0, 5.0, 0.0]]))
    loss = loss_of(losses.value_mse(normalise=True), student, data)
    np.testing.assert_allclose(loss[0, :2], [4 / 4, 1 / 4], rtol=1e-6)
    moved = jax.grad(
        lambda v: jnp.sum(
            loss_of(
                losses.value_mse(normalise=True), student, data._replace(teacher=Outputs((), v))
            )
        )
    )
    np.testing.assert_allclose(
        moved(data.teacher.value)[0, :2], [-2 * 2 / 4, 2 * 1 / 4], rtol=1e-6
    )  # the variance is a unit, not a function
    for constant in (0.0, 0.1, 1e4):  # no spread: plain squares
        flat = batch(shape=(1, 3), teacher=Outputs((), jnp.full((1, 3), constant)))
        loss = loss_of(
            losses.value_mse(normalise=True), Outputs((), jnp.full((1, 3), constant + 1)), flat
        )
        np.testing.assert_allclose(loss, 1, rtol=1e-2)


def test_q_mse_reads_the_logit_at_the_action():
    q = jnp.array([[[1.0, 5.0], [2.0, -3.0]]])
    data = batch(shape=(1, 2), action=jnp.array([[1, 0]]), target=jnp.array([[3.0, 2.5]]))
    np.testing.assert_allclose(
        loss_of(losses.q_mse(), Outputs(Categorical(q)), data), [[4.0, 0.25]], rtol=1e-6
    )
    gradient = jax.grad(lambda q: jnp.sum(loss_of(losses.q_mse(), Outputs(Categorical(q)), data)))(
        q
    )
    np.testing.assert_allclose(gradient, [[[0, 4], [-1, 0]]], rtol=1e-6)


def test_hierarchical_value_distillation():
    """Q_T = (5, 4, 2) and (9, 9, 8): A_T = (0, -1, -3) and (0, 0, -1), in units of the variance of
    all six; a shift of Q changes nothing.
    """
    q = np.array([[[5.0, 4.0, 2.0], [9.0, 9.0, 8.0]]], np.float32)
    advantage = q - q.max(-1, keepdims=True)
    student = np.array(
        [[[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]], np.float32
    )  # A_S = (0, -1, -1) and (0, -1, 0)
    data = batch(shape=(1, 2), teacher=Outputs(Categorical(jnp.asarray(q + 100))))
    plain = loss_of(
        losses.advantage_mse(normalise=False), Outputs(Categorical(jnp.asarray(student))), data
    )
    np.testing.assert_allclose(plain, [[4.0, 2.0]], rtol=1e-4)
    normalised = loss_of(losses.advantage_mse(), Outputs(Categorical(jnp.asarray(student))), data)
    np.testing.assert_allclose(
        normalised, [[4.0 / advantage.var(), 2.0 / advantage.var()]], rtol=1e-4
    )
    sharp = loss_of(losses.advantage_kl(0.5), Outputs(Categorical(jnp.asarray(student))), data)
    np.testing.assert_allclose(sharp, kl(softmax(q / 0.5), softmax(student / 0.5)), rtol=1e-4)
    same = batch(shape=(1, 2), teacher=Outputs(Categorical(jnp.ones((1, 2, 3)))))
    flat = loss_of(losses.advantage_mse(), Outputs(Categorical(jnp.asarray(student))), same)
    np.testing.assert_allclose(flat, [[2.0, 1.0]])  # a teacher without any gap: plain squares


def features(narrow=2, wide=3, **layers):
    """Student and batch [L, N] with `features` of these widths and further layers in `extra`."""
    student = Outputs(
        (),
        jnp.zeros((L, N)),
        jnp.asarray(RNG.normal(size=(L, N, narrow)), jnp.float32),
        {"risk": jnp.zeros((L, N))},
    )
    teacher = Outputs(
        (),
        (),
        jnp.asarray(RNG.normal(size=(L, N, wide)), jnp.float32),
        {"deep": jnp.ones((L, N, 4))},
    )
    return student, batch(teacher=teacher)


def test_feature_mse_is_the_error_of_a_linear_map():
    student, data = features()
    term = losses.feature_mse({"features": "features"})
    spec = jax.eval_shape(lambda: (student, data))
    params = term.init(jax.random.key(0), spec)
    assert jax.tree.map(jnp.shape, params) == {"features": {"kernel": (2, 3), "bias": (3,)}}
    params = {
        "features": {
            "kernel": jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]),
            "bias": jnp.array([0.5, 0.0, 0.0]),
        }
    }
    h, target = np.asarray(student.features), np.asarray(data.teacher.features)
    mapped = h @ np.asarray(params["features"]["kernel"]) + [0.5, 0, 0]
    loss = term.loss(params, student, data, context())
    np.testing.assert_allclose(loss, ((mapped - target) ** 2).mean(-1), rtol=1e-5)
    wide = spec[0]._replace(extra={"deep": jax.ShapeDtypeStruct((L, N, 2), jnp.float32)}), spec[1]
    both = losses.feature_mse({"deep": "features", "features": "features"}).init(
        jax.random.key(0), wide
    )
    kernels = (
        both["deep"]["kernel"],
        both["features"]["kernel"],
        term.init(jax.random.key(0), spec)["features"]["kernel"],
    )
    assert np.all(kernels[0] != kernels[1]) and np.all(
        kernels[1] == kernels[2]
    )  # keys by name: another layer changes no other's
    two = losses.feature_mse({"features": "deep"})
    zero = jax.tree.map(jnp.zeros_like, two.init(jax.random.key(0), spec))
    np.testing.assert_allclose(
        two.loss(zero, student, data, context()), 1.0
    )  # the teacher's layer of ones
    linear = data._replace(teacher=Outputs((), (), student.features @ params["features"]["kernel"]))
    solved = {"features": params["features"] | {"bias": jnp.zeros(3)}}
    gradient = jax.grad(
        lambda h: jnp.sum(term.loss(solved, student._replace(features=h), linear, context()))
    )(student.features)
    np.testing.assert_allclose(
        gradient, 0, atol=1e-5
    )  # a student whose layer holds the teacher's has nothing to learn


def test_feature_mse_names_the_layers_there_are():
    student, data = features()
    spec = jax.eval_shape(lambda: (student, data))
    for layers, message in (
        ({"hidden_1": "features"}, "layer 'hidden_1' of the student, which has: 'features'."),
        ({"features": "broad"}, "layer 'broad' of the teacher, which has: 'features', 'deep'."),
        ({"risk": "features"}, "layer 'risk' of the student"),  # a head [L, N] is no layer
    ):
        with pytest.raises(UsageError, match=message):
            losses.feature_mse(layers).init(jax.random.key(0), spec)
    blind = spec[0]._replace(features=(), extra=())
    with pytest.raises(UsageError, match="which has: none"):
        losses.feature_mse().init(jax.random.key(0), (blind, spec[1]))


def test_feature_mse_is_trained_by_distill():
    """The projection is made from the shapes that `distill` finds, and is part of what the
    optimizer moves.
    """
    env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    teacher, student = networks.mlp(env, (6,)), networks.mlp(env, (3,))
    kd = jaxkd.distill(
        env,
        student,
        teacher,
        losses={"hint": losses.feature_mse()},
        num_minibatches=1,
        unroll_length=2,
    )
    state = jax.eval_shape(kd.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, state.loss_params["hint"]) == {
        "features": {"kernel": (3, 6), "bias": (6,)}
    }
    moments = [x.shape for x in jax.tree.leaves(state.opt_state)]
    assert moments.count((3, 6)) == 2 and moments.count((6,)) == 2  # Adam's, of the projection
    after = jax.eval_shape(kd.step, state, jax.eval_shape(teacher.init, jax.random.key(0)))[0]
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


# --- reinforcement learning ----------------------------------------------------------------------


def test_policy_gradient_by_hand_and_as_rlax():
    """p = (3/4, 1/4), action 0, A = 2: loss -2 log(3/4), gradient -2 (1 - 3/4, -1/4)."""
    z = jnp.log(jnp.array([[[0.75, 0.25]]]))
    data = batch(shape=(1, 1), advantage=[[2.0]])
    loss, gradient = jax.value_and_grad(
        lambda z: jnp.sum(loss_of(losses.policy_gradient(), Outputs(Categorical(z)), data))
    )(z)
    np.testing.assert_allclose(loss, -2 * np.log(0.75), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[[-0.5, 0.5]]], rtol=1e-6)
    action, advantage = RNG.integers(A, size=(L, N)), RNG.normal(size=(L, N)).astype(np.float32)
    data = batch(action=jnp.asarray(action), advantage=jnp.asarray(advantage))
    ours = jnp.mean(loss_of(losses.policy_gradient(), Outputs(Categorical(jnp.asarray(Z))), data))
    theirs = rlax.policy_gradient_loss(
        Z.reshape(-1, A), action.ravel(), advantage.ravel(), np.ones(L * N, np.float32)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_ppo_clip_by_hand():
    """Ratios 1.5 and 0.5 with both signs of the advantage: only moves that went too far in the
    right direction are clipped.
    """
    probability = jnp.array([[0.75, 0.75, 0.25, 0.25]])
    student = Outputs(Categorical(jnp.log(jnp.stack([probability, 1 - probability], -1))))
    data = batch(
        shape=(1, 4), acting=Outputs(Categorical(jnp.zeros((1, 4, 2)))), advantage=[[2, -2, 2, -2]]
    )
    np.testing.assert_allclose(
        loss_of(losses.ppo_clip(0.2, normalise=False), student, data),
        [[-2.4, 3.0, -1.0, 1.6]],
        rtol=1e-5,
    )

    def total(logits):
        return jnp.sum(
            loss_of(losses.ppo_clip(0.2, normalise=False), Outputs(Categorical(logits)), data)
        )

    moves = jnp.abs(jax.grad(total)(student.policy.logits)).max(-1) > 0
    np.testing.assert_array_equal(moves, [[False, True, True, False]])


def test_ppo_clip_higher():
    """Ratios 1.5 and 0.5: up to 1 + .4 where the advantage is positive, down to 1 - .2."""
    probability = jnp.array([[0.75, 0.75, 0.25, 0.25]])
    student = Outputs(Categorical(jnp.log(jnp.stack([probability, 1 - probability], -1))))
    acting = Outputs(Categorical(jnp.zeros((1, 4, 2))))
    data = batch(shape=(1, 4), acting=acting, advantage=[[2, -2, 2, -2]])
    term = losses.ppo_clip(0.2, epsilon_high=0.4, normalise=False)
    np.testing.assert_allclose(loss_of(term, student, data), [[-2.8, 3.0, -1.0, 1.6]], rtol=1e-5)


def test_target_kl_rests_once_the_policy_has_moved():
    """KL of (.5, .5) to (.75, .25) is .1438, to itself 0; the row of weight 0 is left out."""
    moved = jnp.log(jnp.array([[[0.75, 0.25], [0.5, 0.5], [1e-6, 1.0]]]))
    acting = Outputs(Categorical(jnp.zeros((1, 3, 2))))
    data = batch(shape=(1, 3), acting=acting, weight=[[1, 1, 0]])
    for limit, expected in ((0.0720, 1), (0.0718, 0), (lambda update: 0.07 + update, 0)):
        weight = losses.target_kl(limit)(Outputs(Categorical(moved)), data, context())
        assert weight == expected and weight.shape == ()


def test_ppo_clip_normalises_over_what_counts():
    """Advantages 1 and 3 become -1 and 1; a third one of weight 0 changes nothing. At ratio 1 the
    loss is -A.
    """
    policy = Categorical(jnp.zeros((1, 3, 2)))
    data = batch(shape=(1, 3), acting=Outputs(policy), advantage=[[1, 3, 100]], weight=[[1, 1, 0]])
    loss = loss_of(losses.ppo_clip(0.2), Outputs(policy), data)
    np.testing.assert_allclose(loss[0, :2], [1, -1], rtol=1e-5)
    constant = batch(shape=(1, 3), acting=Outputs(policy), advantage=[[5, 5, 5]])
    np.testing.assert_allclose(
        loss_of(losses.ppo_clip(0.2), Outputs(policy), constant), 0, atol=1e-6
    )


def test_a_minibatch_of_one_row_cannot_be_normalised():
    """Its advantage is its mean: the policy learnt nothing, without a word."""
    env = jaxkd.envs.make("CartPole-v1", 2)
    student, keywords = networks.mlp(env, (4,)), dict(unroll_length=2, shuffle="full")
    with pytest.raises(UsageError, match=r"loss 'policy'.*one row.*normalise=False"):
        jaxkd.ppo(env, student, num_minibatches=4, **keywords)
    jaxkd.ppo(env, student, num_minibatches=2, **keywords)


def test_ppo_clip_as_rlax():
    advantage, action = (
        RNG.normal(size=(L, N)).astype(np.float32),
        jnp.asarray(RNG.integers(A, size=(L, N))),
    )
    acting = Categorical(jnp.asarray(Z + 0.3 * V))
    data = batch(acting=Outputs(acting), advantage=jnp.asarray(advantage), action=action)

    def ours(logits):
        return jnp.mean(
            loss_of(losses.ppo_clip(0.1, normalise=False), Outputs(Categorical(logits)), data)
        )

    def theirs(logits):
        ratio = jnp.exp(Categorical(logits).log_prob(action) - acting.log_prob(action))
        return rlax.clipped_surrogate_pg_loss(ratio.ravel(), jnp.asarray(advantage).ravel(), 0.1)

    mine, other = (jax.jit(jax.value_and_grad(f))(jnp.asarray(Z)) for f in (ours, theirs))
    np.testing.assert_allclose(mine[0], other[0], rtol=1e-5)
    np.testing.assert_allclose(mine[1], other[1], atol=1e-6)


def test_td_mse_by_hand():
    """Before 1: values 1.1 (free), 1.5 and 0 (beyond the clip of 0.2), target 2. The larger square
    counts.
    """
    value = jnp.array([[1.1, 1.5, 0.0]])
    student = Outputs((), value, (), {"aux": value + 1})
    acting = Outputs((), jnp.ones((1, 3)), (), {"aux": jnp.full((1, 3), 2.0)})
    data = batch(
        shape=(1, 3),
        acting=acting,
        targets={"": jnp.full((1, 3), 2.0), "aux": jnp.full((1, 3), 3.0)},
    )
    plain, clipped = [[0.81, 0.25, 4.0]], [[0.81, 0.64, 4.0]]
    np.testing.assert_allclose(loss_of(losses.td_mse(), student, data), plain, rtol=1e-5)
    np.testing.assert_allclose(loss_of(losses.td_mse(clip=0.2), student, data), clipped, rtol=1e-5)
    np.testing.assert_allclose(
        loss_of(losses.td_mse(stream="aux"), student, data), plain, rtol=1e-5
    )
    np.testing.assert_allclose(
        loss_of(losses.td_mse(stream="aux", clip=0.2), student, data), clipped, rtol=1e-5
    )
    gradient = jax.grad(lambda v: jnp.sum(loss_of(losses.td_mse(clip=0.2), Outputs((), v), data)))(
        value
    )
    np.testing.assert_allclose(
        gradient, [[-1.8, 0.0, -4.0]], rtol=1e-5
    )  # stopped only where it ran towards the target


# --- combinators ---------------------------------------------------------------------------------


def test_scale_takes_a_number_a_traced_one_and_a_schedule():
    student, data = (
        Outputs(Categorical(jnp.asarray(Z)), jnp.asarray(VALUE)),
        batch(teacher=Outputs((), jnp.asarray(OTHER))),
    )
    term, expected = losses.value_mse(), (VALUE - OTHER) ** 2
    np.testing.assert_allclose(
        loss_of(losses.scale(0.5, term), student, data), 0.5 * expected, rtol=1e-5
    )
    traced = jax.jit(lambda coef: loss_of(losses.scale(coef, term), student, data))
    np.testing.assert_allclose(traced(0.25), 0.25 * expected, rtol=1e-5)
    slope = jax.grad(lambda coef: jnp.sum(loss_of(losses.scale(coef, term), student, data)))(2.0)
    np.testing.assert_allclose(slope, expected.sum(), rtol=1e-5)
    halving = losses.scale(lambda update: 0.5**update, losses.scale(2.0, term))
    for update in (0, 3):
        np.testing.assert_allclose(
            loss_of(halving, student, data, update), 2 * 0.5**update * expected, rtol=1e-5
        )


def test_scale_keeps_the_parameters_of_a_term():
    term = LossTerm(
        lambda key, spec: {"w": jnp.full((), 3.0)},
        lambda params, student, batch, context: params["w"] * student.value,
    )
    for made in (losses.scale(2.0, term), losses.gate(lambda *_: 2.0, term)):
        np.testing.assert_allclose(
            loss_of(made, Outputs((), jnp.asarray(VALUE)), batch()), 6 * VALUE, rtol=1e-6
        )
    np.testing.assert_allclose(
        loss_of(losses.watch(term), Outputs((), jnp.asarray(VALUE)), batch()), 3 * VALUE, rtol=1e-6
    )


def test_scale_takes_optax_schedules_with_traced_ends():
    """A grid of schedules is one vmap; at update 25 of 100 each says what its formula says."""
    student, data = Outputs((), jnp.asarray(VALUE)), batch(teacher=Outputs((), jnp.asarray(OTHER)))
    ends = jnp.array([[1.0, 0.0], [3.0, 1.0]])

    @jax.jit
    @jax.vmap
    def grid(pair):
        start, end = pair
        schedules = (
            optax.linear_schedule(start, end, 100),
            optax.piecewise_constant_schedule(start, {20: 0.5, 50: 0.1}),
            optax.cosine_decay_schedule(start, 100, alpha=end),
            optax.join_schedules(
                [optax.constant_schedule(start), optax.constant_schedule(end)], [20]
            ),
        )
        return jnp.stack(
            [
                loss_of(losses.scale(schedule, losses.value_mse()), student, data, update=25)
                for schedule in schedules
            ]
        )

    cosine = 0.5 * (1 + np.cos(np.pi / 4))
    factors = [[0.75, 0.5, cosine, 0.0], [2.5, 1.5, 3 * cosine * (1 - 1) + 3 * 1, 1.0]]
    expected = np.array(factors)[:, :, None, None] * (VALUE - OTHER) ** 2
    np.testing.assert_allclose(grid(ends), expected, rtol=1e-5, atol=1e-7)


def test_every_float_may_be_traced():
    """A grid over each factory's numbers in one vmap; two lanes against plain Python numbers."""
    p, q = Categorical(jnp.asarray(Z)), Categorical(jnp.asarray(V))
    data = batch(
        teacher=Outputs(q, jnp.asarray(OTHER)),
        acting=Outputs(p.temper(2.0)),
        obs={"task": jnp.zeros((L, N), jnp.int32)},
    )

    def everything(x):
        terms = (
            losses.jsd(x, temperature=1 + x),
            losses.jsd(x, normalise=True),
            losses.skew_kl(x),
            losses.skew_reverse_kl(x),
            losses.ce_kd(x, 1 + x),
            losses.standardised_kl(x),
            losses.advantage_kl(x),
            losses.proximal(x, losses.forward_kl()),
            losses.gate(losses.agreement(x), losses.forward_kl()),
            losses.gate(
                losses.performance_gate(teacher_return=10 * x, random_return=-x),
                losses.forward_kl(),
            ),
            losses.jsd(lambda update: x, normalise=True),
            losses.skew_kl(lambda update: x),
            losses.ce_kd(lambda update: x, lambda update: 1 + x),
            losses.proximal(lambda update: x, losses.forward_kl()),
            losses.gate(losses.agreement(lambda update: x), losses.forward_kl()),
        )
        return jnp.stack(
            [term.loss((), Outputs(p, jnp.asarray(VALUE)), data, context()) for term in terms]
        )

    grid = jax.jit(jax.vmap(everything))(jnp.array([0.2, 0.7]))
    for lane, x in enumerate((0.2, 0.7)):
        np.testing.assert_allclose(
            grid[lane], jax.jit(lambda x=x: everything(x))(), rtol=1e-4, atol=1e-5
        )
    assert np.abs(grid[0] - grid[1]).max((1, 2))[:9].min() > 1e-3


def test_proximal_keeps_a_share_and_passes_the_gradient_on():
    """Ratios 3/2 and 1/2 at epsilon 0.2 are 1.5 and 0.8; the first one's gradient is that of rho,
    the second's that of a number.
    """
    probability = jnp.array([[0.75, 0.25]])
    z = jnp.log(jnp.stack([probability, 1 - probability], -1))
    data = batch(shape=(1, 2), acting=Outputs(Categorical(jnp.zeros((1, 2, 2)))))
    term = losses.proximal(0.2, lambda student, batch: jnp.full((1, 2), 10.0))
    loss, gradient = jax.value_and_grad(
        lambda z: jnp.sum(loss_of(term, Outputs(Categorical(z)), data))
    )(z)
    np.testing.assert_allclose(loss, 15 + 8, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[[15 * 0.25, -15 * 0.25], [0, 0]]], rtol=1e-5)


def test_for_task_counts_only_its_rows():
    task = RNG.integers(3, size=(L, N))
    data = batch(obs={"task": jnp.asarray(task)}, teacher=Outputs((), jnp.asarray(OTHER)))
    for number in range(3):
        loss = loss_of(
            losses.for_task(number, losses.value_mse()), Outputs((), jnp.asarray(VALUE)), data
        )
        np.testing.assert_allclose(
            loss, np.where(task == number, (VALUE - OTHER) ** 2, 0), rtol=1e-5
        )
    for obs, message in (
        (jnp.zeros((L, N, 3)), "none, it is one array"),
        ({"grid": jnp.zeros((L, N))}, "fields: 'grid'"),
    ):
        with pytest.raises(UsageError, match=message):
            loss_of(
                losses.for_task(0, losses.value_mse()),
                Outputs((), jnp.asarray(VALUE)),
                data._replace(obs=obs),
            )


# --- weights -------------------------------------------------------------------------------------


def weight_of(weight, student=None, data=None, episode_return=0.0):
    student = student or Outputs(Categorical(jnp.asarray(Z)), jnp.asarray(VALUE))
    data = data or batch(teacher=Outputs(Categorical(jnp.asarray(V)), jnp.asarray(OTHER)))
    return weight(student, data, context()._replace(episode_return=jnp.float32(episode_return)))


def test_weights_in_float64():
    p, q = softmax(V), softmax(Z)
    np.testing.assert_array_equal(weight_of(losses.value_gate()), OTHER > VALUE)
    np.testing.assert_array_equal(weight_of(losses.one_minus(losses.value_gate())), OTHER <= VALUE)
    np.testing.assert_allclose(weight_of(losses.agreement(0.7)), np.exp(-0.7 * kl(p, q)), rtol=1e-4)
    aux = losses.agreement(policy=lambda student: Categorical(student.extra["imitator"]))
    student = Outputs((), (), (), {"imitator": jnp.asarray(Z / 2)})
    np.testing.assert_allclose(weight_of(aux, student), np.exp(-kl(p, softmax(Z / 2))), rtol=1e-4)
    np.testing.assert_allclose(weight_of(losses.action_gap()), V.max(-1) - V.mean(-1), rtol=1e-5)
    np.testing.assert_allclose(
        weight_of(losses.confidence()), 1 - entropy_of(p) / np.log(A), rtol=1e-4, atol=1e-6
    )
    peaked = batch(
        teacher=Outputs(Categorical(jnp.asarray(np.eye(2, dtype=np.float32)[None] * 100))),
        shape=(1, 2),
    )
    np.testing.assert_allclose(weight_of(losses.confidence(), data=peaked), 1, rtol=1e-6)


@pytest.mark.parametrize(
    "student, expected",
    [(-500.0, 1.0), (-290.0, 0.5), (-80.0, 0.0), (-900.0, 1.0), (20.0, 0.0), (-np.inf, 1.0)],
    ids=[
        "as random",
        "half way",
        "as the teacher",
        "below random",
        "above the teacher",
        "no episode yet",
    ],
)
def test_performance_gate(student, expected):
    gate = losses.performance_gate(teacher_return=-80.0, random_return=-500.0)
    np.testing.assert_allclose(weight_of(gate, episode_return=student), expected, rtol=1e-6)


def test_performance_gate_of_the_paper():
    """G_R = 0: max(1 - G_S / G_T, 0)."""
    np.testing.assert_allclose(
        weight_of(losses.performance_gate(teacher_return=200.0), episode_return=50.0), 0.75
    )


def test_a_lagrangian_by_hand():
    """w = 2, losses (1, 3), bound 1.5: reported and seen by the student 2 (1, 3), and d / d log w
    is the bound minus their mean, -.5: descent makes the weight grow."""
    term = losses.lagrangian(1.5, lambda student, batch: student.value, initial=2.0)
    params, data = term.init(jax.random.key(0), None), batch(shape=(1, 2))

    def mean(params, value):
        student = Outputs(Categorical(jnp.zeros((1, 2, A))), value)
        return term.loss(params, student, data, context()).mean()

    value, (dual, seen) = jax.value_and_grad(mean, (0, 1))(params, jnp.array([[1.0, 3.0]]))
    np.testing.assert_allclose(value, 4, rtol=1e-6)
    np.testing.assert_allclose(dual["log_weight"], -0.5, rtol=1e-6)
    np.testing.assert_allclose(seen, [[1, 1]], rtol=1e-6)  # 2 / N


def test_a_lagrangian_finds_the_weight_of_the_constraint():
    """min -x s.t. x^2 <= 4: x = 2 and w = 1 / 4."""
    term = losses.lagrangian(4.0, lambda student, batch: jnp.square(student.value))
    data, optimizer = batch(shape=(1, 1)), optax.adam(3e-3)

    def objective(trained):
        student = Outputs(Categorical(jnp.zeros((1, 1, A))), trained[0][None, None])
        return (term.loss(trained[1], student, data, context()) - trained[0]).sum()

    def body(carry, _):
        trained, state = carry
        updates, state = optimizer.update(jax.grad(objective)(trained), state, trained)
        return (optax.apply_updates(trained, updates), state), None

    trained = jnp.float32(0.5), term.init(jax.random.key(0), None)
    (trained, _), _ = jax.lax.scan(body, (trained, optimizer.init(trained)), length=2000)
    np.testing.assert_allclose(trained[0], 2, atol=0.02)
    np.testing.assert_allclose(jnp.exp(trained[1]["log_weight"]), 0.25, atol=0.01)


def test_burn_in_keeps_the_size_of_the_mean():
    data = batch(shape=(4, 2))
    weight = losses.burn_in(1)(None, data, context())
    np.testing.assert_allclose(weight, [[0, 0], [4 / 3] * 2, [4 / 3] * 2, [4 / 3] * 2], rtol=1e-6)
    np.testing.assert_allclose(weight.mean(), 1, rtol=1e-6)
    with pytest.raises(UsageError, match=r"burn_in\(4\) leaves no row of a sequence of length 4"):
        losses.burn_in(4)(None, data, context())


def test_v_gated_distillation_ends_no_worse_than_the_teacher():
    """Czarnecki et al. 2019, proposition 2, on a tabular MDP with exact values, state weights and
    policy gradient.

    Three teachers: optimal, optimal with a quarter of noise, the worst there is (all with 2 % of
    noise, so that their logs are finite). With the gate the student ends no worse than any in any
    state, and far above the bad ones; without it the same student stays near them.
    """
    S, gamma, steps = 3, 0.9, 1500
    rng = np.random.default_rng(5)
    transition = rng.dirichlet(np.ones(S), size=(S, A)).astype(np.float32)
    reward = rng.uniform(size=(S, A)).astype(np.float32)

    def evaluated(pi):
        """V [S], Q [S, A] and the discounted state weights [S] from a uniform start."""
        step = jnp.sum(pi[:, :, None] * transition, axis=1)
        value = jnp.linalg.solve(jnp.eye(S) - gamma * step, jnp.sum(pi * reward, axis=1))
        seen = (1 - gamma) * jnp.linalg.solve(jnp.eye(S) - gamma * step.T, jnp.full(S, 1 / S))
        return value, reward + gamma * transition @ value, seen

    def best(sign):
        q = np.zeros((S, A))
        for _ in range(300):
            q = sign * reward + gamma * transition @ q.max(1)
        return np.eye(A, dtype=np.float32)[q.argmax(1)]

    sure = [best(1), 0.75 * best(1) + 0.25 / A, best(-1)]
    teachers = jnp.stack([jnp.log(0.98 * jnp.asarray(pi, jnp.float32) + 0.02 / A) for pi in sure])

    def distilled(teacher, gated):
        taught = jax.nn.softmax(teacher)
        teacher_value = evaluated(taught)[0]
        copy = losses.scale(3.0, losses.cross_entropy())
        terms = {
            "rl": losses.scale(3.0, losses.policy_gradient()),
            "copy": losses.gate(losses.value_gate(), copy) if gated else copy,
        }

        def rows(x):
            return jnp.broadcast_to(x[:, None], (S, A, *x.shape[1:]))

        def descend(z, _):
            value, q, seen = evaluated(jax.nn.softmax(z))
            weight = seen[:, None] * jax.nn.softmax(
                z
            )  # every state and action, as often as the student meets them
            actions = jnp.broadcast_to(jnp.arange(A)[None], (S, A))
            out = Outputs(Categorical(rows(teacher)), rows(teacher_value))
            data = batch(
                shape=(S, A),
                action=actions,
                advantage=q - value[:, None],
                weight=weight,
                teacher=out,
            )

            def loss(z):
                return optimize.total(
                    terms,
                    {"rl": (), "copy": ()},
                    Outputs(Categorical(rows(z)), rows(value)),
                    data,
                    context(),
                )[0]

            return z - jax.grad(loss)(z), None

        z = jax.lax.scan(descend, jnp.zeros((S, A)), None, length=steps)[0]
        return evaluated(jax.nn.softmax(z))[0] - teacher_value

    run = jax.jit(
        lambda teachers: tuple(
            jax.vmap(lambda t, g=gated: distilled(t, g))(teachers) for gated in (True, False)
        )
    )
    gated, ungated = map(np.asarray, run(teachers))
    assert gated.min() > 0
    assert gated[1].min() > 0.5 and gated[2].min() > 5  # measured 0.67 and 6.5
    assert ungated[1].max() < 0.4 and ungated[2].max() < 0.5  # measured 0.24 and 0.25


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: losses.jsd(1.5), r"beta must be in \[0, 1\], got 1.5"),
        (lambda: losses.jsd(temperature=0.0), r"temperature must be in \(0, inf\], got 0"),
        (lambda: losses.skew_kl(-0.1), r"alpha must be in \[0, 1\], got -0.1"),
        (lambda: losses.skew_reverse_kl(2), r"alpha must be in \[0, 1\], got 2"),
        (lambda: losses.ce_kd(3.0), r"ce_weight must be in \[0, 1\], got 3"),
        (lambda: losses.ce_kd(0.5, 0.0), r"temperature must be in \(0, inf\], got 0"),
        (lambda: losses.standardised_kl(0.0), r"temperature must be in \(0, inf\], got 0"),
        (lambda: losses.advantage_kl(-1.0), r"temperature must be in \(0, inf\], got -1"),
        (
            lambda: losses.proximal(1.2, losses.forward_kl()),
            r"epsilon must be in \[0, 1\], got 1.2",
        ),
        (lambda: losses.for_task(-1, losses.forward_kl()), r"task must be in \[0, inf\], got -1"),
        (lambda: losses.agreement(-1.0), r"alpha must be in \[0, inf\], got -1"),
        (
            lambda: losses.performance_gate(teacher_return=1.0, random_return=1.0),
            r"above random_return, got 1 and 1",
        ),
        (lambda: losses.burn_in(0), r"steps must be a positive int"),
        (
            lambda: losses.feature_mse({}),
            r"layers must map a layer of the student to one of the teacher",
        ),
        (lambda: losses.feature_mse("features"), r"got 'features'"),
    ],
)
def test_plain_numbers_are_checked_at_the_call(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_labels_say_how_a_term_was_made():
    assert description.show(losses.jsd(0.9)) == "jsd(beta=0.9)"
    gated = losses.gate(losses.performance_gate(teacher_return=9.0), losses.nll())
    said = "gate(weight=performance_gate(teacher_return=9.0), term=nll)"
    assert description.show(gated) == said
    assert description.show(description.rebuild(description.plain(gated.description))) == said


def test_gate_has_no_gradient_through_its_weight():
    """d/dv of stop(v) v is v, without the stop it were 2 v."""
    term = losses.gate(
        lambda student, batch, context: student.value, lambda student, batch: student.value
    )
    loss, gradient = jax.value_and_grad(lambda v: jnp.sum(loss_of(term, Outputs((), v), batch())))(
        jnp.asarray(VALUE)
    )
    np.testing.assert_allclose(loss, (VALUE**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, VALUE, rtol=1e-6)
    better = losses.gate(
        lambda student, batch, context: batch.teacher.value > student.value, losses.value_mse()
    )
    data = batch(teacher=Outputs((), jnp.asarray(OTHER)))
    expected = np.where(OTHER > VALUE, (VALUE - OTHER) ** 2, 0)
    np.testing.assert_allclose(
        loss_of(better, Outputs((), jnp.asarray(VALUE)), data), expected, rtol=1e-5
    )


def test_watch_reports_without_gradient():
    term = losses.watch(lambda student, batch: student.value > 0)
    loss = loss_of(term, Outputs((), jnp.asarray(VALUE)), batch())
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, VALUE > 0)
    gradient = jax.grad(
        lambda v: jnp.sum(
            loss_of(
                losses.watch(losses.value_mse()), Outputs((), v), batch(teacher=Outputs((), v + 1))
            )
        )
    )
    np.testing.assert_array_equal(gradient(jnp.asarray(VALUE)), 0)


def test_bare_functions_take_two_or_three_arguments():
    class Callable:
        def __call__(self, student, batch):
            return student.value

    def defaults(student, batch, *, power=1):
        return student.value**power

    student = Outputs((), jnp.asarray(VALUE))
    for two in (lambda student, batch: student.value, Callable(), defaults):
        np.testing.assert_array_equal(loss_of(two, student, batch()), VALUE)
    np.testing.assert_allclose(
        loss_of(lambda s, b, context: s.value * context.update, student, batch(), update=3),
        3 * VALUE,
        rtol=1e-6,
    )


def test_the_engine_takes_the_weighted_mean_of_each_term_and_the_sum_of_terms():
    weight = np.zeros((L, N), np.float32)
    weight[0], weight[1, 0] = 1.0, 0.5
    student, data = (
        Outputs((), jnp.asarray(VALUE)),
        batch(weight=jnp.asarray(weight), reward=jnp.asarray(OTHER)),
    )
    terms = {
        "a": losses.stateless(lambda s, b: s.value),
        "b": LossTerm(lambda key, spec: jnp.float32(2), lambda params, s, b, c: params * b.reward),
        "noise": losses.stateless(lambda s, b, c: jax.random.normal(c.key, (L, N))),
        "other": losses.stateless(lambda s, b, c: jax.random.normal(c.key, (L, N))),
    }
    params = {"a": (), "b": jnp.float32(2), "noise": (), "other": ()}
    loss, means = optimize.total(terms, params, student, data, context())
    np.testing.assert_allclose(means["a"], (weight * VALUE).sum() / 4.5, rtol=1e-5)
    np.testing.assert_allclose(means["b"], 2 * (weight * OTHER).sum() / 4.5, rtol=1e-5)
    np.testing.assert_allclose(loss, sum(means.values()), rtol=1e-5)
    assert means["noise"] != means["other"]  # each has a key of its own
    without = optimize.total({"noise": terms["noise"]}, params, student, data, context())[1]
    assert without["noise"] == means["noise"]  # which no other term changes
    gradient = jax.grad(
        lambda v: optimize.total(terms, params, Outputs((), v), data, context())[0]
    )(student.value)
    np.testing.assert_allclose(gradient, weight / 4.5, rtol=1e-6)


def test_a_minibatch_without_weight_teaches_nothing():
    """All weights 0 (no group finished): loss and gradient are 0, not 0 / 0, also through PPO's
    standardised advantage.
    """
    logits = jnp.zeros((L, N, 2))
    acting = Outputs(Categorical(logits), jnp.zeros((L, N)))
    data = batch(
        weight=jnp.zeros((L, N)),
        acting=acting,
        advantage=jnp.asarray(OTHER),
        action=jnp.zeros((L, N), jnp.int32),
    )

    def total(z):
        return optimize.total(
            {"policy": losses.ppo_clip()}, {"policy": ()}, Outputs(Categorical(z)), data, context()
        )[0]

    loss, gradient = jax.value_and_grad(total)(logits)
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


# --- masks, overflow, and rows that do not count --------------------------------------------------

OVER_ACTIONS = {  # what takes a mean, a sum or a deviation over the actions
    "standardised_kl": losses.standardised_kl(2.0),
    "logit_mse": losses.logit_mse(),
    "advantage_mse": losses.advantage_mse(),
    "advantage_kl": losses.advantage_kl(1.0),
    "total_variation": losses.total_variation(),
    "forward_kl": losses.forward_kl(2.0),
    "reverse_kl": losses.reverse_kl(2.0),
    "jsd": losses.jsd(0.3),
    "jsd normalise": losses.jsd(0.3, normalise=True),
    "skew_kl": losses.skew_kl(0.1),
    "skew_reverse_kl": losses.skew_reverse_kl(0.1),
    "ce_kd": losses.ce_kd(),
    "entropy": losses.entropy(),
    "action_gap": losses.gate(losses.action_gap(), losses.nll()),
    "confidence": losses.gate(losses.confidence(), losses.nll()),
    "agreement": losses.gate(losses.agreement(), losses.nll()),
    "q_mse": losses.q_mse(),
    "ppo_clip": losses.ppo_clip(),
}


@pytest.mark.parametrize("mask", [-1e9, -np.inf])
@pytest.mark.parametrize("name", OVER_ACTIONS)
def test_a_masked_action_is_as_if_it_were_not_there(name, mask):
    """Faults A5 and A6: -inf gave nan, and mean and deviation of -1e9 were those of the mask."""

    def value_and_slope(z, v):
        data = batch(
            teacher=Outputs(Categorical(jnp.asarray(v))),
            acting=Outputs(Categorical(jnp.asarray(0.5 * z))),
            advantage=jnp.asarray(VALUE),
            target=jnp.asarray(OTHER),
        )
        total = lambda z: (jnp.sum(loss := loss_of(OVER_ACTIONS[name], z, data)), loss)
        student = lambda z: total(Outputs(Categorical(z)))
        (_, loss), slope = jax.value_and_grad(student, has_aux=True)(jnp.asarray(z))
        return loss, slope

    column = np.full((L, N, 1), mask, np.float32)
    masked = [np.concatenate([x, column], axis=-1) for x in (Z, V)]
    loss, slope = value_and_slope(*masked)
    wanted, wanted_slope = value_and_slope(Z, V)
    np.testing.assert_allclose(loss, wanted, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(slope[..., :-1], wanted_slope, rtol=2e-4, atol=1e-6)
    np.testing.assert_array_equal(slope[..., -1], 0)
    assert np.abs(wanted).max() > 1e-3


def test_confidence_counts_the_actions_that_may_be_taken():
    """Fault E5: uniform over 2 legal of 4 gave .5, one action nan."""
    for logits, expected in [([0, 0, -1e9, -1e9], 0), ([0], 1), ([3, -1e9], 1), ([0, 0, 0, 0], 0)]:
        policy = Categorical(jnp.broadcast_to(jnp.array(logits, jnp.float32), (L, N, len(logits))))
        weight = losses.confidence()(Outputs(policy), batch(teacher=Outputs(policy)), context())
        np.testing.assert_allclose(weight, expected, atol=1e-6)


@pytest.mark.parametrize("number, value", [(7, 0.1), (10, 100.1), (1000, -3.3), (33, 1e-7)])
def test_constant_advantages_are_normalised_to_nothing(number, value):
    """Fault E4: 7 advantages of .1 became -.43, 10 of 100.1 became 1."""
    policy = Categorical(jnp.zeros((1, number, 2)))
    data = batch(shape=(1, number), acting=Outputs(policy), advantage=jnp.full((1, number), value))
    loss = loss_of(losses.ppo_clip(), Outputs(policy), data)
    np.testing.assert_array_equal(loss, 0)


def test_small_differences_of_large_advantages_are_kept():
    """1000 and 1000.01 differ beyond rounding: they become -1 and 1."""
    policy = Categorical(jnp.zeros((1, 2, 2)))
    data = batch(shape=(1, 2), acting=Outputs(policy), advantage=[[1000.0, 1000.01]])
    loss = loss_of(losses.ppo_clip(), Outputs(policy), data)
    np.testing.assert_allclose(loss, [[1, -1]], rtol=0.01)


@pytest.mark.parametrize("large", [1000.0, 1.0, -3e5])
def test_the_unit_of_nearly_constant_values(large):
    """E6: 1000 +- .005 counted as constant, and its unit was 1 where the variance is 2.5e-5."""
    spread = np.float32(large) + abs(large) * np.float32([5e-6, -5e-6, 5e-6, -5e-6])
    values, data = jnp.asarray(spread)[None], dict(shape=(1, 4))
    wrong = Outputs(Categorical(jnp.zeros((1, 4, 2))), values + 1)
    var = np.var(np.float64(spread))
    term = losses.value_mse(normalise=True)
    error = np.square(np.float64(wrong.value) - values)[0]
    loss = loss_of(term, wrong, batch(**data, teacher=Outputs((), values)))
    np.testing.assert_allclose(loss[0], error / var, rtol=1e-3)
    acting = Outputs(wrong.policy)
    loss = loss_of(losses.ppo_clip(), acting, batch(**data, acting=acting, advantage=values))
    np.testing.assert_allclose(loss[0], [-1, 1, -1, 1], rtol=0.01)
    constant = batch(**data, teacher=Outputs((), jnp.full((1, 4), large)))
    error = np.square(np.float64(wrong.value) - large)
    np.testing.assert_allclose(loss_of(term, wrong, constant), error, rtol=1e-3)


def test_an_advantage_of_nan_is_seen():
    """It made all others look constant, and the loss was 0."""
    policy = Categorical(jnp.zeros((1, 3, 2)))
    data = batch(shape=(1, 3), acting=Outputs(policy), advantage=[[1, 2, np.nan]])
    assert np.isnan(loss_of(losses.ppo_clip(), Outputs(policy), data)).all()


def test_what_does_not_count_is_not_normalised_by():
    policy = Categorical(jnp.zeros((1, 4, 2)))
    rows = dict(shape=(1, 4), acting=Outputs(policy), advantage=[[1, 3, np.nan, np.inf]])
    data = batch(**rows, weight=[[1, 1, 0, 0]])
    loss = loss_of(losses.ppo_clip(), Outputs(policy), data)
    np.testing.assert_allclose(loss, [[1, -1, 0, 0]], rtol=1e-5)


def test_a_ratio_that_overflows_leaves_no_nan():
    """Fault E4: e^200 times a KL of 0 was nan in `proximal`."""
    student = Categorical(jnp.array([[[0.0, -200.0]]]))
    acting, action = Categorical(jnp.array([[[-200.0, 0.0]]])), jnp.zeros((1, 1), jnp.int32)
    data = batch(
        shape=(1, 1),
        action=action,
        acting=Outputs(acting),
        teacher=Outputs(student),
        advantage=[[0.0]],
    )
    for term in (losses.proximal(0.2, losses.forward_kl()), losses.ppo_clip(normalise=False)):
        fn = lambda z, term=term: loss_of(term, Outputs(Categorical(z)), data)[0, 0]
        loss, slope = jax.value_and_grad(fn)(student.logits)
        assert loss == 0 and np.isfinite(slope).all()


def test_nan_behind_a_closed_gate_reaches_no_gradient():
    """Also of a norm, whose gradient at zeros is nan: the row shows another one, not zeros."""
    here = jnp.array([[0.0, 1.0, 0.5]])
    term = losses.gate(lambda *_: here, lambda s, b: jnp.linalg.norm(s.features, axis=-1))
    features = jnp.array([[[jnp.nan, 1.0], [3.0, 4.0], [0.0, 2.0]]])
    fn = lambda x: loss_of(term, Outputs((), features=x), batch(shape=(1, 3)))
    np.testing.assert_allclose(fn(features), [[0, 5, 1]], rtol=1e-6)
    slope = jax.grad(lambda x: fn(x).sum())(features)
    np.testing.assert_allclose(slope, [[[0, 0], [0.6, 0.8], [0, 0.5]]], rtol=1e-6)


@pytest.mark.parametrize("where", ["student", "teacher", "target"])
def test_nan_in_the_rows_of_another_task_reaches_no_gradient(where):
    """Fault E4: the value was selected, the gradient was 0 times nan."""
    task = jnp.arange(L * N).reshape(L, N) % 2
    other = (task == 1)[..., None]
    spoilt = lambda x, who: jnp.where(other & (where == who), jnp.nan, jnp.asarray(x))
    features = jnp.asarray(V)
    target = spoilt(OTHER[..., None], "target")[..., 0]
    teacher = Outputs(
        Categorical(spoilt(V, "teacher")), spoilt(OTHER[..., None], "teacher")[..., 0]
    )
    teacher = teacher._replace(features=spoilt(V, "teacher"))
    data = batch(obs={"task": task}, teacher=teacher, targets={"": target})
    layer = losses.feature_mse()
    params = layer.init(jax.random.key(0), (Outputs((), (), features), data))
    terms = {
        "kl": losses.forward_kl(),
        "hint": layer,
        "value": losses.value_mse(normalise=True),
        "td": losses.td_mse(),
    }
    for name, term in terms.items():

        def total(trained, term=term):
            params, z, value = trained
            student = Outputs(Categorical(z), value, z)
            own = losses.for_task(0, term)
            return jnp.sum(own.loss(params, student, data, context()))

        z, value = spoilt(Z, "student"), spoilt(VALUE[..., None], "student")[..., 0]
        loss, slopes = jax.value_and_grad(total)((params, z, value))
        assert np.isfinite(loss), name
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes)), name


def test_a_term_for_a_task_normalises_by_its_own_rows():
    """The other task's values are a hundred times as large, and do not count."""
    task = jnp.arange(L * N).reshape(L, N) % 2
    theirs = jnp.where(task == 1, 100.0, 1.0) * OTHER
    data = batch(obs={"task": task}, teacher=Outputs((), theirs))
    term = losses.for_task(0, losses.value_mse(normalise=True))
    loss = np.asarray(loss_of(term, Outputs((), jnp.asarray(VALUE)), data))
    own = np.asarray(task) == 0
    wanted = np.square(VALUE - OTHER)[own] / np.var(OTHER[own])
    np.testing.assert_allclose(loss[own], wanted, rtol=1e-4)
    np.testing.assert_array_equal(loss[~own], 0)
