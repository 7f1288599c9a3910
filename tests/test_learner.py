"""The assembled learner: no-ops, one trace, the same bits, seeds, statistics, networks of one's
own, second order.
"""

import contextlib
from functools import partial
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxkd import (
    behavior,
    describe,
    distill,
    envs,
    lanes,
    losses,
    moments,
    networks,
    ppo,
    returns,
    run,
    seeds,
    stream,
)
from jaxkd.base import Box, Discrete, Memory, Outputs, Policy, RewardTransform
from jaxkd.distributions import Categorical

B, T = 4, 4
# For what compares no bits with `run`: compiled quickly, run slowly.
jit = partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


class Params(NamedTuple):
    max_steps_in_episode: int = 7


class Drift:
    """Three numbers that the action moves and chance shakes; paid by the first."""

    name, default_params = "Drift", Params()

    def __init__(self, space=None):
        self.space = space or Discrete(2)

    def reset_env(self, key, params):
        state = {"time": jnp.int32(0), "x": jax.random.normal(key, (3,))}
        return state["x"], state

    def step_env(self, key, state, action, params):
        x = state["x"] + 0.1 * jax.random.normal(key, (3,)) + 0.2 * jnp.mean(action) - 0.1
        return x, {"time": state["time"] + 1, "x": x}, x[0], jnp.abs(x[0]) > 3, {}

    def is_truncated(self, state, params):
        return state["time"] >= params.max_steps_in_episode

    def action_space(self, params):
        return self.space


def plain(width, extra=()):
    """A feed-forward policy by hand, quick to compile."""

    def init(key):
        keys = jax.random.split(key)
        return {
            "W": jax.random.normal(keys[0], (3, width)),
            "out": jax.random.normal(keys[1], (width, 3 + len(extra))),
        }

    def step(params, carry, obs, reset):
        out = jnp.tanh(obs @ params["W"]) @ params["out"]
        return carry, Outputs(
            Categorical(out[..., :2]),
            out[..., 2],
            (),
            {name: out[..., 3 + i] for i, name in enumerate(extra)},
        )

    return Policy(init, lambda n: (), step, step)


ENV = envs.make(Drift(), B)
STUDENT, TEACHER = plain(5), plain(11)
TEACHER_PARAMS = {
    "W": np.random.default_rng(0).normal(size=(3, 11)),
    "out": np.random.default_rng(1).normal(size=(11, 3)),
}
TEACHER_PARAMS = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), TEACHER_PARAMS)
SIZES = dict(num_minibatches=2, unroll_length=T)
RECORD = Memory(
    init=lambda spec: (), add=lambda buffer, batch: batch, sample=lambda key, buffer, batch: batch
)


def kd(student=STUDENT, teacher=TEACHER, *, temperature=1.0, **keywords):
    return distill(
        ENV,
        student,
        teacher,
        **(dict(losses={"kl": losses.forward_kl(temperature)}) | SIZES | keywords),
    )


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(
        jax.tree_util.tree_flatten_with_path(one)[0], jax.tree.leaves(other), strict=True
    ):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def distance(one, other):
    return max(
        float(jnp.max(jnp.abs(a - b)))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@contextlib.contextmanager
def compilations():
    """A list that gets an entry for each program that XLA compiles."""
    seen = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


# --- what is a no-op, and what is not (S5) -------------------------------------------------------


def test_a_term_of_weight_zero_is_plain_ppo(key):
    """Five updates of PPO, alone and with a teacher whose term weighs nothing: the same bits. A
    term that is watched, too.
    """
    watched = losses.watch(losses.forward_kl())
    alone, silent = (
        jit(lambda key, a=a, i=i: run(a, key, 5, *i))(key)
        for a, i in (
            (ppo(ENV, STUDENT, **SIZES), ()),
            (
                ppo(
                    ENV,
                    STUDENT,
                    TEACHER,
                    losses={"kl": losses.scale(0.0, losses.forward_kl()), "watched": watched},
                    **SIZES,
                ),
                (TEACHER_PARAMS,),
            ),
        )
    )
    assert_same_bits(alone[0].params, silent[0].params)
    for name in alone[1]:
        np.testing.assert_array_equal(alone[1][name], silent[1][name])
    assert np.all(silent[1]["loss/kl"] == 0) and np.all(silent[1]["loss/watched"] > 0)
    assert distance(alone[0].params, STUDENT.init(key)) > 1e-3


def test_permuting_the_teachers_logits_changes_the_student(key):
    train = jit(lambda params: run(kd(optimizer=optax.adam(1e-2)), key, 3, params)[0].params)
    swapped = TEACHER_PARAMS | {"out": TEACHER_PARAMS["out"][:, jnp.array([1, 0, 2])]}
    other_value = TEACHER_PARAMS | {"out": TEACHER_PARAMS["out"].at[:, 2].add(1.0)}
    assert distance(train(TEACHER_PARAMS), train(swapped)) > 1e-2
    assert distance(train(TEACHER_PARAMS), train(other_value)) == 0  # which the KL does not read


def test_a_student_that_is_its_teacher_stays(key):
    """Gradient norms below 1e-6; SGD at 1e-3 leaves every parameter within 1e-8 over 50 updates."""

    def update(gradient, largest, params=None):
        return jax.tree.map(lambda g: -1e-3 * g, gradient), jnp.maximum(
            largest, optax.tree.norm(gradient)
        )

    norms = optax.GradientTransformation(lambda params: jnp.zeros(()), update)
    algorithm = kd(STUDENT, STUDENT, optimizer=norms)

    @jit
    def train(teacher_params):
        state, _ = run(algorithm, key, 50, teacher_params)
        return state.params, state.opt_state

    start = jit(algorithm.init)(key).params
    params, norm = train(start)
    assert norm < 1e-6 and distance(params, start) < 1e-8
    _, norm = train(start | {"out": -start["out"]})
    assert norm > 1e-2


# --- one trace, one program (S4) -----------------------------------------------------------------


def test_changed_numbers_trace_once():
    """Seed, learning rate, temperature and beta are traced (a grid of them: test_training.py)."""

    def experiment(key, learning_rate, temperature, beta):
        algorithm = kd(
            temperature=temperature,
            behavior=behavior.mixture(beta),
            optimizer=optax.sgd(learning_rate),
        )
        return run(algorithm, key, 2, TEACHER_PARAMS)[0].params["out"]

    chex.clear_trace_counter()
    once = jit(chex.assert_max_traces(experiment, n=1))
    base = dict(key=jax.random.key(0), learning_rate=0.1, temperature=1.0, beta=0.0)
    first = once(**base)
    for changed in (
        dict(key=jax.random.key(1)),
        dict(learning_rate=0.2),
        dict(temperature=2.0),
        dict(beta=1.0),
    ):
        assert distance(first, once(**(base | changed))) > 1e-4


@pytest.mark.bits
def test_stream_is_run_bit_for_bit_and_a_second_run_compiles_nothing(key):
    """Five updates at once, one by one, two by two (which does not divide), and resumed; then
    another key, without a compilation.
    """
    algorithm = kd(
        losses={"kl": losses.forward_kl(), "value": losses.value_mse()}, optimizer=optax.adam(1e-2)
    )
    state, metrics = run(algorithm, key, 5, TEACHER_PARAMS)
    for chunk_size in (1, 2):
        seen = []
        for now, chunk in stream(algorithm, key, 5, TEACHER_PARAMS, chunk_size=chunk_size):
            seen.append(jax.device_get(chunk))
            reached = now
        assert [len(chunk["return"]) for chunk in seen] == (
            [1] * 5 if chunk_size == 1 else [2, 2, 1]
        )
        assert_same_bits(state, reached)
        assert_same_bits(
            metrics, {name: np.concatenate([chunk[name] for chunk in seen]) for name in metrics}
        )
    *_, (half, _) = stream(algorithm, key, 2, TEACHER_PARAMS, chunk_size=2)
    assert half.update == 2
    *_, (resumed, _) = stream(
        algorithm, jax.random.key(99), 3, TEACHER_PARAMS, chunk_size=1, state=half
    )  # the key is the state's own
    assert_same_bits(state, resumed)
    with compilations() as compiled:
        other, _ = run(algorithm, jax.random.key(7), 5, TEACHER_PARAMS)
        *_, (same, _) = stream(algorithm, jax.random.key(7), 5, TEACHER_PARAMS, chunk_size=2)
        jax.block_until_ready((other, same))
    assert compiled == []
    assert distance(other.params, state.params) > 1e-3
    with compilations() as compiled:
        run(algorithm, key, 1, TEACHER_PARAMS)
    assert len(compiled) >= 1  # the counter counts


def test_a_step_keeps_every_type_of_the_state(key):
    """Shapes, dtypes and weak types: a drift would compile a second program for the second chunk of
    a stream.
    """
    algorithm = ppo(
        ENV, networks.mlp(ENV, (4,), normalise=True), rewards={"n": _doubled("")}, **SIZES
    )
    before = jax.eval_shape(algorithm.init, key)
    after, _ = jax.eval_shape(algorithm.step, before)
    for (path, a), b in zip(
        jax.tree_util.tree_flatten_with_path(before)[0], jax.tree.leaves(after), strict=True
    ):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type), (
            jax.tree_util.keystr(path)
        )
    assert jax.tree.structure(before) == jax.tree.structure(after)


# --- seeds ---------------------------------------------------------------------------------------


def test_a_seed_is_the_same_among_many():
    """Alone or under vmap: 1e-5 after one update; the same number of lanes: the same bits whatever
    n is.
    """
    algorithm = kd(optimizer=optax.sgd(0.1))

    def experiment(key):
        return run(algorithm, key, 1, TEACHER_PARAMS)[0].params

    many = jit(jax.vmap(experiment))(seeds(0, 4))
    flat = np.concatenate([np.asarray(x).reshape(4, -1) for x in jax.tree.leaves(many)], 1)
    assert (
        min(np.abs(a - b).max() for i, a in enumerate(flat) for b in flat[:i]) > 1e-2
    )  # seeds differ
    alone = jit(experiment)(seeds(0, 9)[2])
    assert distance(jax.tree.map(lambda x: x[2], many), alone) < 1e-5
    four, two = (
        jit(lambda keys: jax.lax.map(experiment, keys, batch_size=2))(seeds(0, n)) for n in (4, 2)
    )
    assert_same_bits(jax.tree.map(lambda x: x[:2], four), two)


def test_a_shared_teacher_is_not_copied_per_seed():
    """In the lowered program of 7 seeds no array [7, ...] of the teacher's shape; with a teacher
    for each there is one.
    """
    algorithm = kd()

    def shapes(teacher_axis, params):
        program = jax.jit(
            jax.vmap(lambda key, params: run(algorithm, key, 2, params), (0, teacher_axis))
        ).lower(seeds(0, 7), params)
        return program.as_text()

    shared = shapes(None, TEACHER_PARAMS)
    assert (
        "tensor<3x11xf32>" in shared and "tensor<7x3x5xf32>" in shared
    )  # the teacher once, the students seven times
    assert "tensor<7x3x11xf32>" not in shared and "tensor<7x11x3xf32>" not in shared
    each = shapes(0, jax.tree.map(lambda x: jnp.stack([x] * 7), TEACHER_PARAMS))
    assert "tensor<7x3x11xf32>" in each
    state = jax.eval_shape(jax.vmap(algorithm.init), seeds(0, 7))
    assert not any(11 in x.shape for x in jax.tree.leaves(state))  # nor is it in the state
    lowered = (
        jax.jit(lambda keys, params: run(lanes(algorithm), keys, 2, params))
        .lower(seeds(0, 7), TEACHER_PARAMS)
        .as_text()
    )
    assert "tensor<3x11xf32>" in lowered and "tensor<7x3x11xf32>" not in lowered


# --- statistics ----------------------------------------------------------------------------------


def test_statistics_see_every_observation_and_nothing_else(key):
    """Mean and variance of all rows of two updates; no gradient (Adam's moments are 0), no weight
    decay, the teacher's frozen.
    """
    wrapped, teacher = (networks.normalised(policy, ENV.obs_spec) for policy in (STUDENT, TEACHER))
    frozen = {
        "policy": TEACHER_PARAMS,
        "statistics": moments.Moments(
            jnp.float32(9), jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 1.0, 0.5])
        ),
    }

    def loss(student, batch):
        return batch.teacher.policy.kl(student.policy) + 0 * batch.teacher.value

    algorithm = kd(
        wrapped,
        teacher,
        losses={"kl": loss},
        memory=RECORD,
        optimizer=optax.adamw(0.1, weight_decay=0.5),
    )
    state, step, seen = jit(algorithm.init)(key), jit(algorithm.step), []
    for _ in range(2):
        state, _ = step(state._replace(memory=()), frozen)
        seen.append(np.asarray(state.memory.obs).reshape(-1, 3))
        standard = (seen[-1] - [1, 2, 3]) / np.sqrt([4, 1, 0.5])
        expected = (
            np.tanh(standard @ np.asarray(TEACHER_PARAMS["W"]))
            @ np.asarray(TEACHER_PARAMS["out"])[:, 2]
        )
        np.testing.assert_allclose(
            state.memory.teacher.value.ravel(), expected, rtol=1e-4, atol=1e-5
        )
    seen, statistics = np.concatenate(seen), state.params["statistics"]
    assert statistics.count == len(seen) == 2 * T * B
    np.testing.assert_allclose(statistics.mean, seen.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(statistics.var, seen.var(0), rtol=1e-4)
    mean_gradient = state.opt_state[0].mu[0]
    assert all(not np.any(x) for x in jax.tree.leaves(mean_gradient["statistics"]))
    assert all(np.any(x) for x in jax.tree.leaves(mean_gradient["policy"]))


# --- rewards and streams -------------------------------------------------------------------------


def _doubled(stream):
    """Twice what was there before, plus one."""
    return RewardTransform(
        lambda key, spec: (), lambda reward, state, batch, context: (2 * reward + 1, state), stream
    )


def test_rewards_chain_and_advantages_add(key):
    """gamma = lambda = 0: A = 3 (r' - V) + (b' - V_b), with r' = 2 (2 r + 1) + 1 and b' = 2 (0) + 1
    on a stream of its own.
    """
    transforms = {"a": _doubled(""), "b": _doubled(""), "c": _doubled("bonus")}
    made = {
        "": returns.scale(3.0, returns.gae(0.0, 0.0)),
        "bonus": returns.gae(0.0, 0.0, episodic=False),
    }
    terms = {
        "value": losses.td_mse(),
        "bonus": losses.td_mse(stream="bonus"),
        "policy": losses.ppo_clip(),
    }
    algorithm = distill(
        ENV,
        plain(5, ("bonus",)),
        losses=terms,
        rewards=transforms,
        returns=made,
        memory=RECORD,
        **SIZES,
    )
    state, metrics = jit(algorithm.step)(jit(algorithm.init)(key))
    batch = state.memory
    paid = 4 * batch.reward + 3
    np.testing.assert_allclose(batch.streams[""], paid, rtol=1e-6)
    np.testing.assert_array_equal(batch.streams["bonus"], 1)
    np.testing.assert_allclose(batch.targets[""], paid, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch.targets["bonus"], 1, atol=1e-5)
    np.testing.assert_allclose(batch.target, batch.targets[""])
    expected = 3 * (paid - batch.acting.value) + 1 - batch.acting.extra["bonus"]
    np.testing.assert_allclose(batch.advantage, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(metrics["reward/b"], paid.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["reward/a"], (2 * batch.reward + 1).mean(), rtol=1e-4, atol=1e-6
    )
    losses_, rewards_ = (
        {f"loss/{name}" for name in terms},
        {f"reward/{name}" for name in transforms},
    )
    assert set(metrics) == {"return", "episodes", "not_finite"} | losses_ | rewards_
    assert all(x.shape == () for x in metrics.values())


# --- networks of one's own -----------------------------------------------------------------------


class Two(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, obs):
        parameters = nn.Dense(4 if self.kind == "box" else 2)(obs)
        if self.kind in ("alone", "box"):
            return parameters
        value = nn.Dense(1)(obs)[..., 0]
        return (
            (parameters, value) if self.kind == "pair" else Outputs(Categorical(parameters), value)
        )


class Nnx(nnx.Module):
    def __init__(self, *, rngs):
        self.inner, self.out = nnx.Linear(3, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, obs):
        return self.out(nnx.tanh(self.inner(obs)))


def nnx_policy():
    graph = nnx.graphdef(nnx.eval_shape(lambda: Nnx(rngs=nnx.Rngs(0))))

    def step(params, carry, obs, reset):
        out = nnx.merge(graph, params)(obs)
        return carry, Outputs(Categorical(out[..., :2]), out[..., 2])

    return Policy(lambda key: nnx.state(Nnx(rngs=nnx.Rngs(params=key))), lambda n: (), step, step)


@pytest.mark.parametrize("kind", ["outputs", "pair", "alone", "box", "nnx"])
def test_any_module_trains_two_updates(kind, key):
    env = envs.make(Drift(Box((2,))), B) if kind == "box" else ENV
    student = nnx_policy() if kind == "nnx" else networks.feedforward(env, Two(kind))
    teacher = student if kind in ("alone", "box", "nnx") else TEACHER
    terms = {"kl": losses.forward_kl()} | (
        {"value": losses.value_mse()} if kind in ("outputs", "pair", "nnx") else {}
    )
    algorithm = distill(env, student, teacher, losses=terms, optimizer=optax.adam(1e-2), **SIZES)

    @jit
    def train(key):
        state, metrics = run(algorithm, key, 2, teacher.init(jax.random.key(5)))
        return (
            state.params,
            metrics,
            jax.tree.map(
                lambda new, old: jnp.any(new != old), state.params, algorithm.init(key).params
            ),
        )

    params, metrics, changed = train(key)
    assert all(
        np.all(np.isfinite(x)) for x in jax.tree.leaves((params, metrics["loss/kl"]))
    ) and np.all(metrics["loss/kl"] > 0)
    assert all(map(bool, jax.tree.leaves(changed)))  # every parameter is trained


# --- second order, description -------------------------------------------------------------------


def test_second_order_through_a_step_is_exact():
    """The teacher acts, so the data do not depend on the student: the gradient through the
    optimizer's step is the finite difference.
    """
    state = jit(kd().init)(jax.random.key(3))

    def after(learning_rate, temperature, start):
        algorithm = kd(
            temperature=temperature,
            behavior=behavior.teacher_acts(),
            optimizer=optax.sgd(learning_rate),
            num_minibatches=1,
            unroll_length=T,
        )
        params = jax.tree.map(lambda x: start * x, state.params)
        new, _ = algorithm.step(state._replace(params=params), TEACHER_PARAMS)
        return jnp.sum(jnp.square(new.params["out"])) + jnp.sum(new.params["W"] ** 3)

    at = jnp.float32(0.5), jnp.float32(1.5), jnp.float32(1.0)
    value, gradients = jit(jax.value_and_grad(after, (0, 1, 2)))(*at)
    measure = jit(after)
    for i, gradient in enumerate(gradients):
        step = 1e-2
        up, down = ([x + sign * step * (i == j) for j, x in enumerate(at)] for sign in (1, -1))
        assert np.isfinite(gradient) and abs(gradient) > 1e-3
        np.testing.assert_allclose(
            gradient, (measure(*up) - measure(*down)) / (2 * step), rtol=0.03, atol=2e-3
        )
    np.testing.assert_allclose(value, measure(*at), rtol=1e-5)


def test_describe_prints_what_was_assembled(capsys):
    """One row a component: its name, how it was made, what it reads."""
    describe(
        kd(
            losses={"near": losses.scale(0.5, losses.forward_kl(2.0))},
            behavior=behavior.mixture(0.25),
        )
    )
    text = capsys.readouterr().out
    assert text.startswith("distill on Drift\n")
    (row,) = [line for line in text.splitlines() if " near " in line]
    assert (
        "scale(value=0.5, term=forward_kl(temperature=2.0))" in row
        and "batch.teacher" in row
        and "student.policy" in row
    )
    assert "mixture(beta=0.25, every='step')" in text
    assert "gae(gamma=0.99, lambda_=0.95, episodic=True)" in text
    assert f"unroll_length   {T}" in text and "num_minibatches 2" in text
    assert hash(kd().description) is not None
