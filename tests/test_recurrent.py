"""LSTM and GRU: formulas, step against unroll, resets, gradients through time, a task for memory.

Also the learner with carries.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import (
    actor_size,
    description,
    distill,
    envs,
    evaluate,
    load_policy,
    losses,
    moments,
    networks,
    run,
    save_policy,
)
from jaxkd.base import Box, Discrete, Memory, Outputs, Policy, UsageError
from jaxkd.distributions import Categorical, Normal
from jaxkd.networks.module import Spec

jit = partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)
VECTOR = Spec(jax.ShapeDtypeStruct((3,), jnp.float32), Discrete(2))
L, N = 7, 4
RESET = np.zeros((L, N), np.float32)
RESET[0, :2], RESET[3, 1], RESET[5, 1:] = (
    1,
    1,
    1,
)  # at the start, in the middle, twice in one column
FACTORIES = {"lstm": networks.lstm, "gru": networks.gru}
both = pytest.mark.parametrize("name", FACTORIES)


def weights(policy, scale=0.5):
    """Random params by numpy: no compilation of an initialisation."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(scale * rng.normal(size=x.shape), x.dtype),
        jax.eval_shape(policy.init, jax.random.key(0)),
    )


def rows(key=1, lead=(L, N)):
    return jnp.asarray(np.random.default_rng(key).normal(size=(*lead, 3)), jnp.float32)


def carry_of(policy, key=2):
    """A carry that is not zeros."""
    rng = np.random.default_rng(key)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), policy.initial_carry(N)
    )


def assert_near(one, other, atol=1e-6):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=0), one, other)


# --- formulas ---------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_lstm(carry, x, p, k, units):
    """One step by hand, gate after gate (methods 1.13): f, i, o, then the new memory."""
    h, c = carry
    f, i, o, new = (
        x @ p["kernel"][:, gate] + p["bias"][gate] + h @ k[:, gate]
        for gate in (slice(units * g, units * (g + 1)) for g in range(4))
    )
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(new)
    return sigmoid(o) * np.tanh(c), c


def numpy_gru(carry, x, p, k, units):
    """One step by hand: r, z, then the proposal, whose recurrent part r gates."""
    (h,) = carry
    gates = [slice(units * g, units * (g + 1)) for g in range(3)]
    r, z = (sigmoid(x @ p["kernel"][:, g] + p["bias"][g] + h @ k[:, g]) for g in gates[:2])
    n = np.tanh(x @ p["kernel"][:, gates[2]] + p["bias"][gates[2]] + r * (h @ k[:, gates[2]]))
    return ((1 - z) * n + z * h,)


@both
def test_against_a_cell_by_hand(name):
    """Two dense layers, the cell, the heads, in float64 numpy, row by row, with resets."""
    units, by_hand = 5, {"lstm": numpy_lstm, "gru": numpy_gru}[name]
    policy = FACTORIES[name](VECTOR, (6, 4), units=units)
    params, obs, carry = weights(policy), rows(), carry_of(policy)
    last, out = jit(policy.unroll)(params, carry, obs, jnp.asarray(RESET))
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
    x = np.asarray(obs, np.float64)
    for layer in ("Dense_0", "Dense_1"):
        x = np.tanh(x @ p["actor"][layer]["kernel"] + p["actor"][layer]["bias"])
    memory, shown = [np.asarray(m, np.float64) for m in carry], []
    for t in range(L):
        memory = by_hand(
            [m * (1 - RESET[t])[:, None] for m in memory], x[t], p["input"], p["recurrent"], units
        )
        shown.append(memory[0])
    shown = np.stack(shown)
    np.testing.assert_allclose(
        out.policy.logits, shown @ p["policy"]["kernel"] + p["policy"]["bias"], atol=1e-5
    )
    np.testing.assert_allclose(
        out.value, (shown @ p["value"]["kernel"] + p["value"]["bias"])[..., 0], atol=1e-5
    )
    np.testing.assert_allclose(out.features, shown, atol=1e-5)
    assert_near(tuple(last), tuple(np.float32(m) for m in memory), 1e-5)
    np.testing.assert_allclose(out.extra["hidden_1"], x, atol=1e-5)
    np.testing.assert_array_equal(out.extra["hidden_2"], out.features)


@both
def test_initial_weights(name, key):
    """Orthogonal for each gate; the LSTM's forget gate begins with bias 1, all else with 0."""
    policy = FACTORIES[name](VECTOR, (6,), units=5)
    params = jit(lambda key: jax.vmap(policy.init)(jax.random.split(key, 2)))(key)["params"]
    gates = {"lstm": 4, "gru": 3}[name]
    for seed in range(2):
        for square in np.split(params["recurrent"][seed], gates, axis=1):
            np.testing.assert_allclose(square @ square.T, np.eye(5), atol=1e-5)
        for tall in np.split(params["input"]["kernel"][seed], gates, axis=1):
            np.testing.assert_allclose(tall.T @ tall, np.eye(5), atol=1e-5)
    np.testing.assert_array_equal(
        params["input"]["bias"][0], np.repeat([1, 0, 0, 0] if name == "lstm" else [0, 0, 0], 5)
    )
    flat = np.asarray(params["recurrent"]).reshape(2 * 5, gates, 5)
    assert (
        np.abs(flat[:, 0] - flat[:, 1]).max() > 0.1 and np.abs(flat[:5] - flat[5:]).max() > 0.1
    )  # gates and seeds differ


# --- step, unroll, resets ---------------------------------------------------------------------


@both
@pytest.mark.parametrize("normalise", [False, True], ids=["plain", "normalised"])
def test_step_by_step_is_unroll(name, normalise):
    """Resets in the middle and a carry that is not zeros.

    Normalised by statistics that were seen.
    """
    policy = FACTORIES[name](VECTOR, (6,), units=5, normalise=normalise, extra=("rnd",))
    params, obs, reset = weights(policy), rows(), jnp.asarray(RESET)
    if normalise:
        params = policy.observe(
            params | {"statistics": moments.empty(VECTOR.obs_spec)}, 2 * rows(5) + 1
        )
    step, carry, outputs = jit(policy.step), carry_of(policy), []
    last, whole = jit(policy.unroll)(params, carry, obs, reset)
    for t in range(L):
        carry, out = step(params, carry, obs[t], reset[t])
        outputs.append(out)
    assert_near(carry, last)
    assert_near(jax.tree.map(lambda *x: jnp.stack(x), *outputs), whole)
    assert np.std(whole.value) > 0.05 and whole.extra["rnd"].shape == (L, N)


@both
def test_a_reset_forgets_all(name):
    """After a reset the outputs are those of zeros, whatever came before.

    Without one they are not.
    """
    policy = FACTORIES[name](VECTOR, (6,), units=5)
    params, obs, step = weights(policy), rows()[0], jit(policy.step)
    carry, fresh = carry_of(policy), policy.initial_carry(N)
    assert all(x.dtype == jnp.float32 and not np.any(x) for x in fresh)
    assert_near(step(params, carry, obs, jnp.ones(N)), step(params, fresh, obs, jnp.zeros(N)), 0)
    kept = step(params, carry, obs, jnp.zeros(N))[1].value
    assert np.abs(kept - step(params, fresh, obs, jnp.zeros(N))[1].value).min() > 1e-4


@both
def test_gradient_flows_through_time_but_not_across_a_reset(name):
    """d value[-1] / d obs[t].

    Zero, exactly, before the column's last reset, and not zero from there on; so too for the carry.
    """
    policy = FACTORIES[name](VECTOR, (6,), units=5)
    params = weights(policy)
    last = lambda carry, obs: (
        policy.unroll(params, carry, obs, jnp.asarray(RESET))[1].value[-1].sum()
    )
    of_carry, of_obs = jit(jax.grad(last, (0, 1)))(carry_of(policy), rows())
    since = [max((t for t in range(L) if RESET[t, n]), default=-1) for n in range(N)]
    assert since == [0, 5, 5, 5]
    for n, start in enumerate(since):
        assert not np.any(of_obs[:start, n]) and np.abs(of_obs[start:, n]).max(-1).min() > 1e-8
    assert not any(np.any(x) for x in of_carry)
    free = lambda carry: policy.unroll(params, carry, rows(), jnp.zeros((L, N)))[1].value[-1].sum()
    assert all(np.abs(x).max(-1).min() > 1e-8 for x in jit(jax.grad(free))(carry_of(policy)))


@both
def test_the_scan_is_thin(name):
    """Inside the scan: one matrix product, with the recurrent kernel.

    Dense layers, input projection and heads are outside.
    """
    policy = FACTORIES[name](VECTOR, (6, 4), units=5)
    jaxpr = jax.make_jaxpr(policy.unroll)(
        weights(policy), policy.initial_carry(N), rows(), jnp.asarray(RESET)
    ).jaxpr
    scans = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    assert len(scans) == 1 and str(scans[0].params["jaxpr"]).count("dot_general") == 1
    assert sum(eqn.primitive.name == "dot_general" for eqn in jaxpr.eqns) == 2 + 1 + 2


# --- sizes, kinds, descriptions ---------------------------------------------------------------


def test_numbers_of_parameters():
    """The actor without the value head; three gates for a GRU; no hidden layers at all."""
    for policy, cell in (
        (networks.lstm(VECTOR, (8,), units=5), 4 * (8 * 5 + 5 * 5 + 5)),
        (networks.gru(VECTOR, 8, units=5), 210),
    ):
        shapes = jax.eval_shape(policy.init, jax.random.key(0))
        assert actor_size(policy, shapes, VECTOR.obs_spec) == 32 + cell + 12
        assert sum(x.size for x in jax.tree.leaves(shapes)) == 32 + cell + 12 + 6
    bare = networks.lstm(VECTOR, (), units=5)
    assert (
        actor_size(bare, jax.eval_shape(bare.init, jax.random.key(0)), VECTOR.obs_spec)
        == 4 * (15 + 25 + 5) + 12
    )


@both
def test_kinds_of_observations_and_actions(name):
    """A dict, one field of it, continuous actions, bfloat16: float32 answers, a float32 carry."""
    spec = Spec(
        {"a": jax.ShapeDtypeStruct((2, 2), jnp.int8), "b": jax.ShapeDtypeStruct((), jnp.float32)},
        Box((3,)),
    )
    obs = {"a": jnp.ones((L, N, 2, 2), jnp.int8), "b": jnp.ones((L, N))}
    for policy in (
        FACTORIES[name](spec, (4,), dtype=jnp.bfloat16),
        FACTORIES[name](spec, (4,), select="a", normalise=True),
    ):
        carry, out = jax.eval_shape(
            policy.unroll,
            jax.eval_shape(policy.init, jax.random.key(0)),
            policy.initial_carry(N),
            obs,
            RESET,
        )
        assert isinstance(out.policy, Normal) and out.policy.mean.shape == (L, N, 3)
        assert {x.dtype for x in (*carry, out.policy.mean, out.value)} == {jnp.dtype(jnp.float32)}


@both
def test_a_description_makes_it_again(name):
    policy = FACTORIES[name](
        VECTOR, [6], activation=jax.nn.relu, extra=("rnd",), normalise=True, dtype=jnp.bfloat16
    )
    keywords = "hidden=(6,), activation=relu, normalise=True, dtype=bfloat16, extra=('rnd',)"
    assert description.show(policy) == f"{name}(env=Spec, {keywords})"
    again = description.rebuild(description.plain(policy))
    assert again.description == policy.description
    assert hash(again.description) == hash(policy.description)
    shapes = [jax.eval_shape(p.init, jax.random.key(0)) for p in (policy, again)]
    assert shapes[0] == shapes[1]


@both
def test_saved_and_loaded(name, tmp_path):
    """Also as the trunk of several tasks: the same description, params bit for bit."""
    spec = Spec(
        {
            "obs": VECTOR.obs_spec,
            "task": jax.ShapeDtypeStruct((), jnp.int32),
            "mask": jax.ShapeDtypeStruct((2,), bool),
        },
        Discrete(2),
    )
    heads = networks.multihead(spec, (4,), network=FACTORIES[name], num_tasks=3)
    for policy in (FACTORIES[name](VECTOR, (6,), units=5, extra=("rnd",)), heads):
        params = weights(policy)
        again, loaded = load_policy(save_policy(tmp_path / "policy", policy, params))
        assert again.description == policy.description
        jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: networks.lstm(VECTOR, ()), "lstm without hidden layers needs units="),
        (lambda: networks.gru(VECTOR, (8,), units=0), "units must be a positive int"),
        (lambda: networks.gru(VECTOR, (8, 2.0)), "hidden must be a positive int"),
        (lambda: networks.lstm(VECTOR, extra=("recurrent",)), "'recurrent'"),
        (
            lambda: networks.mlp(VECTOR, (8,), extra=("hidden_0",)),
            "hidden_0, hidden_1, ... are the layers",
        ),
    ],
)
def test_errors(build, words):
    with pytest.raises(UsageError, match=words):
        build()


# --- the learner ------------------------------------------------------------------------------


class Params(NamedTuple):
    max_steps_in_episode: int = 6


class Recall:
    """A cue is shown in the first observation.

    In the sixth, which says so, the action that names it is paid 1. "cue" is privileged.
    """

    name, default_params, length = "Recall", Params(), 6

    def reset_env(self, key, params):
        state = {"time": jnp.int32(0), "cue": jax.random.bernoulli(key).astype(jnp.int32)}
        return self._obs(state), state

    def step_env(self, key, state, action, params):
        last = state["time"] == self.length - 1
        reward = jnp.where(last & (action == state["cue"]), 1.0, 0.0)
        state = state | {"time": state["time"] + 1}
        return self._obs(state), state, reward, last, {}

    def is_truncated(self, state, params):
        return state["time"] > params.max_steps_in_episode

    def action_space(self, params):
        return Discrete(2)

    def _obs(self, state):
        cue = jax.nn.one_hot(state["cue"], 2)
        asked = (state["time"] == self.length - 1).astype(jnp.float32)
        return {
            "cue": cue,
            "seen": jnp.concatenate([jnp.where(state["time"] == 0, cue, 0.0), asked[None]]),
        }


def knows():
    """A teacher by hand, perfect because it reads the cue; before it is asked it does not care."""

    def step(params, carry, obs, reset):
        return carry, Outputs(Categorical(20.0 * obs["seen"][..., 2:] * (obs["cue"] - 0.5)))

    return Policy(lambda key: jnp.zeros(()), lambda n: (), step, step)


RECORD = Memory(
    init=lambda spec: (), add=lambda buffer, batch: batch, sample=lambda key, buffer, batch: batch
)


@pytest.mark.parametrize(
    ("name", "length"), [("lstm", None), ("gru", 4)], ids=["lstm-T", "gru-T/2"]
)
def test_the_learner_takes_recurrent_students(name, length):
    """KL from a recurrent teacher: finite, learns, traced once.

    In each sequence, from its carry, the student says again what it said.
    """
    env = envs.make(Recall(), 4)
    student, teacher = (
        FACTORIES[name](env, (5,), select="seen", normalise=True),
        networks.lstm(env, (7,)),
    )
    seen = []

    def difference(student, batch):
        seen.append(batch.reward.shape)
        return jnp.abs(student.value - batch.acting.value)

    terms = {"kl": losses.forward_kl(), "same": losses.watch(difference)}
    sizes = dict(
        unroll_length=8, sequence_length=length, num_minibatches=1, optimizer=optax.adam(1e-2)
    )
    algorithm = distill(env, student, teacher, losses=terms, memory=RECORD, **sizes)
    step, teacher_params = jit(algorithm.step), weights(teacher)
    state, reported = jit(algorithm.init)(jax.random.key(1)), []
    at_init = len(seen)
    for _ in range(4):
        state, metrics = step(state._replace(memory=()), teacher_params)
        reported.append(metrics)
        if len(reported) == 1:
            once = len(seen)
    assert at_init < once == len(seen) and step._cache_size() == 1
    assert seen[0] == ((8, 4) if length is None else (4, 8))
    assert all(metrics["loss/same"] < 1e-6 for metrics in reported)
    assert reported[-1]["loss/kl"] < reported[0]["loss/kl"] and all(
        np.all(np.isfinite(x)) for x in jax.tree.leaves(state.params)
    )
    assert np.any(state.memory.reset[1:]) and np.std(state.memory.acting.value) > 0.01
    assert (
        all(np.any(x) for x in state.actors.carry) and state.params["statistics"].count == 4 * 8 * 4
    )


def accuracy(make, key, updates=120):
    """Of a student that sees the cue once, taught by one that always does.

    Alone, and for an evaluation that plays greedily.
    """
    env = envs.make(Recall(), 64)
    student = make(env)
    algorithm = distill(
        env,
        student,
        knows(),
        losses={"kl": losses.forward_kl()},
        unroll_length=12,
        num_minibatches=2,
        optimizer=optax.adam(1e-2),
    )

    @jit
    def experiment(key):
        key_train, key_score = jax.random.split(key)
        state, metrics = run(algorithm, key_train, updates, jnp.zeros(()))
        return evaluate(env, student, state.params, key_score, num_episodes=256)

    score = experiment(key)
    np.testing.assert_array_equal(score.lengths, 6)
    return float(score.returns.mean())


@pytest.mark.parametrize("name", ["lstm", "gru", "mlp"])
def test_a_task_that_needs_memory(name, key):
    """A privileged teacher's cue of five steps ago.

    Recurrent students keep it, a feed-forward one guesses (0.5 +- 5 sigma).
    """
    reached = accuracy(lambda env: getattr(networks, name)(env, (16,), select="seen"), key)
    assert abs(reached - 0.5) < 5 * 0.5 / 16 if name == "mlp" else reached > 0.99
