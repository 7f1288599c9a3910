"""Loss terms: closed forms, numbers by hand, rlax; what the combinators scale, gate and stop; the engine's weighted mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from jaxkd import losses, networks, optimize
from jaxkd.base import Batch, Context, LossTerm, Outputs, Policy
from jaxkd.distributions import Categorical, Normal

L, N, A = 3, 4, 5
RNG = np.random.default_rng(1)
Z, V = 2 * RNG.normal(size=(2, L, N, A)).astype(np.float32)  # logits of student and teacher
VALUE, OTHER = RNG.normal(size=(2, L, N)).astype(np.float32)


def batch(**fields) -> Batch:
    """[L, N] of zeros, weight 1, with `fields`; Python lists become arrays."""
    fields = {k: jnp.asarray(v, jnp.float32) if isinstance(v, list) else v for k, v in fields.items()}
    zeros = jnp.zeros(fields.pop("shape", (L, N)))
    empty = dict(obs=(), next_obs=(), carry=(), acting=(), teacher=(), action=zeros.astype(jnp.int32), weight=zeros + 1)
    return Batch(**dict(reward=zeros, terminated=zeros, truncated=zeros, reset=zeros) | empty | fields)


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


# --- distillation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [1.0, 4.0, lambda update: 2.0 + update], ids=["1", "4", "schedule"])
def test_kl_is_temperature_squared_times_the_tempered_kl(t):
    """At update 3 the schedule says 5; the factor T^2 is Hinton's."""
    student, data = Outputs(Categorical(jnp.asarray(Z))), batch(teacher=Outputs(Categorical(jnp.asarray(V))))
    value = t(3) if callable(t) else t
    ours, theirs = softmax(Z / value), softmax(V / value)
    forward, reverse = (loss_of(make(t), student, data, update=3) for make in (losses.forward_kl, losses.reverse_kl))
    assert forward.shape == reverse.shape == (L, N)
    np.testing.assert_allclose(forward, value**2 * kl(theirs, ours), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(reverse, value**2 * kl(ours, theirs), rtol=1e-4, atol=1e-5)
    assert np.abs(forward - reverse).max() > 0.05


def test_hot_kl_matches_logits():
    """T -> infinity: the gradient of T^2 KL is (z - v) / A for zero-mean logits (Hinton et al. 2015, eq. 4); without T^2 it were 0."""
    z, v = Z - Z.mean(-1, keepdims=True), V - V.mean(-1, keepdims=True)
    data = batch(teacher=Outputs(Categorical(jnp.asarray(v))))
    for make in (losses.forward_kl, losses.reverse_kl):
        gradient = jax.grad(lambda z, make=make: jnp.sum(loss_of(make(400.0), Outputs(Categorical(z)), data)))(jnp.asarray(z))
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
        loss = loss_of(losses.forward_kl(), Outputs(Categorical(jnp.asarray(Z))), batch(teacher=teacher))
        np.testing.assert_allclose(loss, kl(softmax(q / 0.01), softmax(Z)), rtol=1e-4, atol=1e-5)


def test_kl_of_normals_goes_in_its_direction():
    wide, narrow = Normal(jnp.zeros((L, N, 1)), jnp.full((L, N, 1), jnp.log(2.0))), Normal(jnp.zeros((L, N, 1)), jnp.zeros((L, N, 1)))
    data = batch(teacher=Outputs(wide))
    np.testing.assert_allclose(loss_of(losses.forward_kl(), Outputs(narrow), data), -np.log(2) + 4 / 2 - 0.5, rtol=1e-5)
    np.testing.assert_allclose(loss_of(losses.reverse_kl(), Outputs(narrow), data), np.log(2) + 1 / 8 - 0.5, rtol=1e-5)
    # Temper at T doubles both variances: the KL of normals with one mean stays, times T^2.
    np.testing.assert_allclose(loss_of(losses.forward_kl(2.0), Outputs(narrow), data), 4 * (-np.log(2) + 4 / 2 - 0.5), rtol=1e-5)


def test_value_mse_and_entropy():
    student = Outputs(Categorical(jnp.asarray(Z)), jnp.asarray(VALUE))
    data = batch(teacher=Outputs((), jnp.asarray(OTHER)))
    np.testing.assert_allclose(loss_of(losses.value_mse(), student, data), (VALUE - OTHER) ** 2, rtol=1e-5)
    gradient = jax.grad(lambda v: jnp.sum(loss_of(losses.value_mse(), student._replace(value=v), data)))(student.value)
    np.testing.assert_allclose(gradient, 2 * (VALUE - OTHER), rtol=1e-5)
    p = softmax(Z)
    np.testing.assert_allclose(loss_of(losses.entropy(), student, data), (p * np.log(p)).sum(-1), rtol=1e-5)


# --- reinforcement learning -----------------------------------------------------------------------------------------


def test_ppo_clip_by_hand():
    """Ratios 1.5 and 0.5 with both signs of the advantage: only moves that went too far in the right direction are clipped."""
    probability = jnp.array([[0.75, 0.75, 0.25, 0.25]])
    student = Outputs(Categorical(jnp.log(jnp.stack([probability, 1 - probability], -1))))
    data = batch(shape=(1, 4), acting=Outputs(Categorical(jnp.zeros((1, 4, 2)))), advantage=[[2, -2, 2, -2]])
    np.testing.assert_allclose(loss_of(losses.ppo_clip(0.2, normalise=False), student, data), [[-2.4, 3.0, -1.0, 1.6]], rtol=1e-5)

    def total(logits):
        return jnp.sum(loss_of(losses.ppo_clip(0.2, normalise=False), Outputs(Categorical(logits)), data))

    moves = jnp.abs(jax.grad(total)(student.policy.logits)).max(-1) > 0
    np.testing.assert_array_equal(moves, [[False, True, True, False]])


def test_ppo_clip_normalises_over_what_counts():
    """Advantages 1 and 3 become -1 and 1; a third one of weight 0 changes nothing. At ratio 1 the loss is -A."""
    policy = Categorical(jnp.zeros((1, 3, 2)))
    data = batch(shape=(1, 3), acting=Outputs(policy), advantage=[[1, 3, 100]], weight=[[1, 1, 0]])
    loss = loss_of(losses.ppo_clip(0.2), Outputs(policy), data)
    np.testing.assert_allclose(loss[0, :2], [1, -1], rtol=1e-5)
    constant = batch(shape=(1, 3), acting=Outputs(policy), advantage=[[5, 5, 5]])
    np.testing.assert_allclose(loss_of(losses.ppo_clip(0.2), Outputs(policy), constant), 0, atol=1e-6)


def test_ppo_clip_as_rlax():
    advantage, action = RNG.normal(size=(L, N)).astype(np.float32), jnp.asarray(RNG.integers(A, size=(L, N)))
    acting = Categorical(jnp.asarray(Z + 0.3 * V))
    data = batch(acting=Outputs(acting), advantage=jnp.asarray(advantage), action=action)

    def ours(logits):
        return jnp.mean(loss_of(losses.ppo_clip(0.1, normalise=False), Outputs(Categorical(logits)), data))

    def theirs(logits):
        ratio = jnp.exp(Categorical(logits).log_prob(action) - acting.log_prob(action))
        return rlax.clipped_surrogate_pg_loss(ratio.ravel(), jnp.asarray(advantage).ravel(), 0.1)

    mine, other = (jax.jit(jax.value_and_grad(f))(jnp.asarray(Z)) for f in (ours, theirs))
    np.testing.assert_allclose(mine[0], other[0], rtol=1e-5)
    np.testing.assert_allclose(mine[1], other[1], atol=1e-6)


def test_td_mse_by_hand():
    """Before 1: values 1.1 (free), 1.5 and 0 (beyond the clip of 0.2), target 2. The larger square counts."""
    value = jnp.array([[1.1, 1.5, 0.0]])
    student = Outputs((), value, (), {"aux": value + 1})
    acting = Outputs((), jnp.ones((1, 3)), (), {"aux": jnp.full((1, 3), 2.0)})
    data = batch(shape=(1, 3), acting=acting, targets={"": jnp.full((1, 3), 2.0), "aux": jnp.full((1, 3), 3.0)})
    plain, clipped = [[0.81, 0.25, 4.0]], [[0.81, 0.64, 4.0]]
    np.testing.assert_allclose(loss_of(losses.td_mse(), student, data), plain, rtol=1e-5)
    np.testing.assert_allclose(loss_of(losses.td_mse(clip=0.2), student, data), clipped, rtol=1e-5)
    np.testing.assert_allclose(loss_of(losses.td_mse(stream="aux"), student, data), plain, rtol=1e-5)
    np.testing.assert_allclose(loss_of(losses.td_mse(stream="aux", clip=0.2), student, data), clipped, rtol=1e-5)
    gradient = jax.grad(lambda v: jnp.sum(loss_of(losses.td_mse(clip=0.2), Outputs((), v), data)))(value)
    np.testing.assert_allclose(gradient, [[-1.8, 0.0, -4.0]], rtol=1e-5)  # stopped only where it ran towards the target


# --- combinators ----------------------------------------------------------------------------------------------------


def test_scale_takes_a_number_a_traced_one_and_a_schedule():
    student, data = Outputs(Categorical(jnp.asarray(Z)), jnp.asarray(VALUE)), batch(teacher=Outputs((), jnp.asarray(OTHER)))
    term, expected = losses.value_mse(), (VALUE - OTHER) ** 2
    np.testing.assert_allclose(loss_of(losses.scale(0.5, term), student, data), 0.5 * expected, rtol=1e-5)
    traced = jax.jit(lambda coef: loss_of(losses.scale(coef, term), student, data))
    np.testing.assert_allclose(traced(0.25), 0.25 * expected, rtol=1e-5)
    slope = jax.grad(lambda coef: jnp.sum(loss_of(losses.scale(coef, term), student, data)))(2.0)
    np.testing.assert_allclose(slope, expected.sum(), rtol=1e-5)
    halving = losses.scale(lambda update: 0.5**update, losses.scale(2.0, term))
    for update in (0, 3):
        np.testing.assert_allclose(loss_of(halving, student, data, update), 2 * 0.5**update * expected, rtol=1e-5)


def test_scale_keeps_the_parameters_of_a_term():
    term = LossTerm(lambda key, spec: {"w": jnp.full((), 3.0)}, lambda params, student, batch, context: params["w"] * student.value)
    for made in (losses.scale(2.0, term), losses.gate(lambda *_: 2.0, term)):
        np.testing.assert_allclose(loss_of(made, Outputs((), jnp.asarray(VALUE)), batch()), 6 * VALUE, rtol=1e-6)
    np.testing.assert_allclose(loss_of(losses.watch(term), Outputs((), jnp.asarray(VALUE)), batch()), 3 * VALUE, rtol=1e-6)


def test_gate_has_no_gradient_through_its_weight():
    """d/dv of stop(v) v is v, without the stop it were 2 v."""
    term = losses.gate(lambda student, batch, context: student.value, lambda student, batch: student.value)
    loss, gradient = jax.value_and_grad(lambda v: jnp.sum(loss_of(term, Outputs((), v), batch())))(jnp.asarray(VALUE))
    np.testing.assert_allclose(loss, (VALUE**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, VALUE, rtol=1e-6)
    better = losses.gate(lambda student, batch, context: batch.teacher.value > student.value, losses.value_mse())
    data = batch(teacher=Outputs((), jnp.asarray(OTHER)))
    expected = np.where(OTHER > VALUE, (VALUE - OTHER) ** 2, 0)
    np.testing.assert_allclose(loss_of(better, Outputs((), jnp.asarray(VALUE)), data), expected, rtol=1e-5)


def test_watch_reports_without_gradient():
    term = losses.watch(lambda student, batch: student.value > 0)
    loss = loss_of(term, Outputs((), jnp.asarray(VALUE)), batch())
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, VALUE > 0)
    gradient = jax.grad(lambda v: jnp.sum(loss_of(losses.watch(losses.value_mse()), Outputs((), v), batch(teacher=Outputs((), v + 1)))))
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
    np.testing.assert_allclose(loss_of(lambda s, b, context: s.value * context.update, student, batch(), update=3), 3 * VALUE, rtol=1e-6)


def test_the_engine_takes_the_weighted_mean_of_each_term_and_the_sum_of_terms():
    weight = np.zeros((L, N), np.float32)
    weight[0], weight[1, 0] = 1.0, 0.5
    student, data = Outputs((), jnp.asarray(VALUE)), batch(weight=jnp.asarray(weight), reward=jnp.asarray(OTHER))
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
    gradient = jax.grad(lambda v: optimize.total(terms, params, Outputs((), v), data, context())[0])(student.value)
    np.testing.assert_allclose(gradient, weight / 4.5, rtol=1e-6)


def test_a_minibatch_without_weight_teaches_nothing():
    """All weights 0 (no group finished): loss and gradient are 0, not 0 / 0, also through PPO's standardised advantage."""
    logits = jnp.zeros((L, N, 2))
    acting = Outputs(Categorical(logits), jnp.zeros((L, N)))
    data = batch(weight=jnp.zeros((L, N)), acting=acting, advantage=jnp.asarray(OTHER), action=jnp.zeros((L, N), jnp.int32))

    def total(z):
        return optimize.total({"policy": losses.ppo_clip()}, {"policy": ()}, Outputs(Categorical(z)), data, context())[0]

    loss, gradient = jax.value_and_grad(total)(logits)
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)
