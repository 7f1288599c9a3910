"""Q networks and PQN: what a wrapped policy is, one update by hand, and that it learns, also to
teach.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import (
    behavior,
    describe,
    distill,
    envs,
    load_policy,
    losses,
    memory,
    networks,
    pqn,
    run,
    save_policy,
)
from jaxkd.base import Box, Discrete, Memory, Outputs, Policy, UsageError
from jaxkd.distributions import Categorical
from jaxkd.networks.module import Spec

jit = partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)
RECORD = Memory(
    init=lambda spec: (), add=lambda buffer, batch: batch, sample=lambda key, buffer, batch: batch
)
B, T = 4, 6


class Params(NamedTuple):
    max_steps_in_episode: int = 4


class Steps:
    """Two numbers; pays 1 for the action that the first says."""

    name, default_params = "Steps", Params()

    def reset_env(self, key, params):
        state = {"time": jnp.int32(0), "x": jax.random.normal(key, (2,))}
        return state["x"], state

    def step_env(self, key, state, action, params):
        reward = jnp.float32((state["x"][0] > 0) == action)
        x = jax.random.normal(key, (2,))
        return x, {"time": state["time"] + 1, "x": x}, reward, jax.random.uniform(key) < 0.2, {}

    def is_truncated(self, state, params):
        return state["time"] >= params.max_steps_in_episode

    def action_space(self, params):
        return Discrete(2)


def linear(params, carry, obs, reset):
    return carry, Outputs(Categorical(obs @ params), 7 + obs[..., 0])


ENV = envs.make(Steps(), B)
LINEAR = Policy(lambda key: jax.random.normal(key, (2, 2)), lambda n: (), linear, linear)
SIZES = dict(unroll_length=T, num_minibatches=1, num_epochs=1)


# --- the network ---------------------------------------------------------------------------------


def test_the_value_is_the_largest_q(key):
    """In step and in unroll; the policy, its greedy action and its params are those of the network
    inside; twice is once.
    """
    inner = networks.mlp(ENV, (8,), layer_norm=True)
    policy, params, obs = networks.q(inner), jit(inner.init)(key), jax.random.normal(key, (3, 5, 2))
    for made in (policy, networks.q(policy)):
        out, before = (
            made.unroll(params, (), obs, jnp.zeros((3, 5)))[1],
            inner.unroll(params, (), obs, jnp.zeros((3, 5)))[1],
        )
        np.testing.assert_array_equal(out.policy.logits, before.policy.logits)
        np.testing.assert_array_equal(out.value, np.max(out.policy.logits, axis=-1))
        np.testing.assert_array_equal(out.policy.mode(), np.argmax(out.policy.logits, axis=-1))
        np.testing.assert_array_equal(out.features, before.features)
        one = made.step(params, (), obs[0], jnp.zeros(5))[1]
        np.testing.assert_allclose(one.value, out.value[0], rtol=1e-5, atol=1e-7)
    assert jax.tree.structure(jax.eval_shape(policy.init, key)) == jax.tree.structure(params)


def test_a_tempered_q_network_is_a_soft_teacher():
    """softmax(Q / 0.01), its value still in units of Q: Q(s, .) = (0, 0.02) is 1 : e^2."""
    teacher = networks.temper(networks.q(LINEAR), 0.01)
    out = teacher.step(jnp.array([[0.0, 0.02], [0, 0]]), (), jnp.array([[1.0, 0]]), jnp.zeros(1))[1]
    np.testing.assert_allclose(
        jax.nn.softmax(out.policy.logits)[0],
        [1 / (1 + np.e**2), np.e**2 / (1 + np.e**2)],
        rtol=1e-5,
    )
    np.testing.assert_allclose(out.value, 0.02)


def test_an_illegal_action_is_no_value(key):
    """A logit of -1e9 is neither the maximum nor taken."""
    out = networks.q(
        Policy(
            LINEAR.init,
            LINEAR.initial_carry,
            *[lambda params, carry, obs, reset: (carry, Outputs(Categorical(obs)))] * 2,
        )
    )
    q = out.step((), (), jnp.array([[-3.0, -1e9, -2.0]]), jnp.zeros(1))[1]
    assert q.value == -2 and q.policy.mode() == 2


def test_a_q_network_needs_discrete_actions():
    box = Spec(jax.ShapeDtypeStruct((2,), jnp.float32), Box((3,)))
    with pytest.raises(
        UsageError, match="n discrete actions, but the policy acts in 3 continuous dimensions"
    ):
        networks.q(networks.mlp(box, (4,)))
    unknown = networks.feedforward(box, nn.Dense(6))._replace(description=())
    policy = networks.q(unknown)  # says what it is only when it is used
    with pytest.raises(UsageError, match="n discrete actions, but the policy is Normal"):
        jax.eval_shape(
            lambda obs: policy.step(policy.init(jax.random.key(0)), (), obs, jnp.zeros(1)),
            jnp.zeros((1, 2)),
        )
    with pytest.raises(UsageError, match="policy must be a Policy"):
        networks.q(nn.Dense(2))  # pyright: ignore[reportArgumentType]


def test_a_q_network_is_saved_as_such_or_as_the_network_inside(key, tmp_path):
    """Both have the same params, and both come back as what they were."""
    inner = networks.mlp(ENV, (4,), layer_norm=True)
    policy, params = networks.q(inner), jit(inner.init)(key)
    obs = jax.random.normal(key, (3, 2))
    loaded, read = load_policy(save_policy(tmp_path / "inner", inner, params))
    whole, same = load_policy(save_policy(tmp_path / "q", policy, params))
    ours = policy.step(params, (), obs, jnp.zeros(3))[1].value
    for theirs, weights in ((networks.q(loaded), read), (whole, same)):
        answer = theirs.step(weights, (), obs, jnp.zeros(3))[1].value
        np.testing.assert_array_equal(ours, answer)


# --- the algorithm -------------------------------------------------------------------------------


def test_one_update_by_hand(key):
    """Targets of Peng's Q(lambda) from max_a Q at the true successor, then one step of SGD on (Q(s,
    a) - target)^2, through a time limit.
    """
    seen = losses.watch(lambda student, batch: batch.next_obs[..., 0] + batch.acting.value)
    algorithm = pqn(
        ENV,
        LINEAR,
        gamma=0.9,
        lambda_=0.5,
        losses={"seen": seen},
        memory=RECORD,
        optimizer=optax.sgd(0.1),
        epsilon=0.5,
        **SIZES,
    )
    before = jit(algorithm.init)(key)
    after, metrics = jit(algorithm.step)(before._replace(memory=()))
    data, w = after.memory, np.asarray(before.params)
    np.testing.assert_allclose(
        data.acting.value, np.max(np.asarray(data.obs) @ w, -1), rtol=1e-4, atol=1e-5
    )
    following, target, later = (
        np.max(np.asarray(data.next_obs) @ w, axis=-1),
        np.zeros((T, B)),
        None,
    )
    done, ended = np.asarray(data.terminated + data.truncated), np.asarray(data.terminated)
    assert ended.sum() > 0 and done.sum() > ended.sum()
    for t in reversed(range(T)):
        ahead = (
            following[t]
            if later is None
            else np.where(done[t] > 0, following[t], 0.5 * later + 0.5 * following[t])
        )
        later = target[t] = np.asarray(data.reward[t]) + 0.9 * (1 - ended[t]) * ahead
    np.testing.assert_allclose(data.target, target, rtol=1e-4, atol=1e-4)

    def loss(w):
        q = jnp.take_along_axis(data.obs @ w, data.action[..., None], axis=-1)[..., 0]
        return jnp.mean(jnp.square(q - target))

    np.testing.assert_allclose(metrics["loss/q"], loss(before.params), rtol=1e-4)
    np.testing.assert_allclose(
        after.params - before.params, -0.1 * jax.grad(loss)(before.params), rtol=1e-3, atol=1e-5
    )
    greedy = np.argmax(np.asarray(data.obs) @ w, -1)
    assert 0 < np.mean(greedy != data.action) < 0.6


def test_defaults_and_what_replaces_them(capsys):
    describe(pqn(ENV, LINEAR, num_minibatches=2))
    text = capsys.readouterr().out
    assert (
        "q_mse" in text
        and "q_lambda(gamma=0.99, lambda_=0.65, watkins=False)" in text
        and "epsilon_greedy(epsilon=" in text
    )
    describe(
        pqn(
            ENV,
            LINEAR,
            LINEAR,
            num_minibatches=2,
            behavior=behavior.teacher_acts(),
            losses={"kl": losses.forward_kl()},
        )
    )
    text = capsys.readouterr().out
    assert (
        "teacher_acts" in text
        and "forward_kl" in text
        and "q_mse" in text
        and "epsilon_greedy" not in text
    )
    with pytest.raises(UsageError, match="discrete"):
        pqn(ENV, networks.mlp(Spec(ENV.obs_spec, Box((2,))), (4,)))
    with pytest.raises(
        UsageError, match=r"loss 'q' reads target, which belong .* memory=ring\(capacity=3\)"
    ):
        pqn(ENV, LINEAR, num_minibatches=2, memory=memory.ring(3))


def test_it_learns_what_pays(key):
    """Contextual: after 60 updates the greedy action is the paid one; and Rusu's student of the
    tempered Q teacher has it too.
    """
    env = envs.make(Steps(), 32)
    policy = networks.mlp(env, (16,), layer_norm=True, activation=nn.relu)
    learning = pqn(
        env,
        policy,
        gamma=0.5,
        learning_rate=5e-3,
        epsilon=lambda update: 1 - update / 60,
        unroll_length=8,
        num_epochs=2,
    )
    student, teacher = networks.mlp(env, (8,)), networks.temper(networks.q(policy), 0.01)
    replay = dict(
        behavior=behavior.epsilon_greedy(0.05, behavior.teacher_acts(greedy=True)),
        memory=memory.ring(8),
    )
    cloning = distill(
        env,
        student,
        teacher,
        losses={"kl": losses.forward_kl()},
        optimizer=optax.adam(1e-2),
        unroll_length=8,
        **replay,
    )

    @jit
    def both(key):
        expert = run(learning, key, 60)[0].params
        return expert, run(cloning, key, 60, expert)[0].params

    obs = jax.random.normal(jax.random.key(9), (500, 2))
    obs = obs[jnp.abs(obs[:, 0]) > 0.1]
    for made, params in zip((policy, student), both(key), strict=True):
        action = made.step(params, (), obs, jnp.zeros(len(obs)))[1].policy.mode()
        assert np.mean(action == (obs[:, 0] > 0)) > 0.95
