"""True successors under either rule, wherever cuts come; weights that an environment gives; carries
at the starts of sequences.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_rollout import RECORD, B, Clock, accumulator, plain, read_all, replayed, rollouts

import jaxkd
from jaxkd import envs, losses, networks, rewards, successors
from jaxkd.base import Outputs, Policy, UsageError
from jaxkd.distributions import Categorical
from jaxkd.optimize import component_key
from jaxkd.returns import gae


class Early(Clock):
    """Cuts at 2, long before the limit in its parameters."""

    def is_truncated(self, state, params):
        return state["time"] >= 2


class AnyTime(Clock):
    """Begins with a clock that stands anywhere."""

    def reset_env(self, key, params):
        _, state = super().reset_env(key, params)
        state = state | {"time": jax.random.randint(key, (), 0, params.max_steps_in_episode)}
        return self._obs(state), state


class Strays(Clock):
    """Is cut where it has left a region, whatever the time."""

    def is_truncated(self, state, params):
        return (state["time"] * state["luck"] > 1.0) | super().is_truncated(state, params)


@pytest.mark.parametrize(
    ("clock", "steps"), [(Clock, 5), (Early, 2), (AnyTime, None), (Strays, None)]
)
def test_how_far_cuts_lie_apart_is_found_out(clock, steps):
    assert envs.make(clock(), 2).cut_steps == steps


def test_gymnax_and_what_the_adapter_counts():
    assert envs.make("CartPole-v1", 2).cut_steps == 500
    assert envs.make("CartPole-v1", 2, max_steps=7).cut_steps == 7
    assert envs.concat(envs.make("CartPole-v1", 2), envs.make(Early(), 2)).cut_steps == 2
    assert envs.concat(envs.make("CartPole-v1", 2), envs.make(AnyTime(), 2)).cut_steps is None


def test_it_is_found_out_under_a_users_trace_too(key):
    found = []

    @jax.jit
    def reset(key):
        made = [envs.make(clock(), 2) for clock in (Clock, Early, AnyTime)]
        found.extend(env.cut_steps for env in made)
        return [env.reset(key)[1] for env in made]

    reset(key)
    assert found == [5, 2, None]


@pytest.mark.parametrize("clock", [Early, AnyTime, Strays, "large"])
@pytest.mark.parametrize("kind", ["feedforward", "recurrent"])
def test_every_cut_is_answered_by_what_was_cut_off(clock, kind, monkeypatch):
    """The policy replayed row by row in Python says the same at every true successor."""
    if clock == "large":
        monkeypatch.setattr(successors, "_LARGE", -1)  # every carry is too large for a slot
    env = envs.make(Clock() if clock == "large" else clock(end=0.05), B)
    pair = (plain(6), plain(7)) if kind == "feedforward" else (accumulator(6), accumulator(7))
    theirs, ours, batches, _ = rollouts(env, *pair, read_all, 2, unroll_length=8)
    assert sum(batch.truncated.sum() for batch in batches) >= 2 * B
    for params, policy, field in ((ours, pair[0], "acting"), (theirs, pair[1], "teacher")):
        _, following = replayed(policy, params, batches)
        for batch, wanted in zip(batches, following, strict=True):
            alive = np.asarray(batch.terminated) == 0
            found = getattr(batch, f"{field}_next").value
            np.testing.assert_allclose(found[alive], wanted[alive], rtol=1e-4, atol=1e-5)


def test_the_smallest_case_by_hand():
    """Two cuts in four steps where the parameters promise one: 40.15 and 41.58, not 30.83 and
    31.68.
    """

    class Hand(Clock):
        def __init__(self):
            super().__init__(end=0.0)

        def reset_env(self, key, params):
            state = {"time": jnp.int32(0), "luck": jnp.float32(0.0), "row": jnp.int32(0)}
            return self._obs(state), state

        def step_env(self, key, state, action, params):
            state = state | {"time": state["time"] + 1}
            return self._obs(state), state, 1.0, False, {}

        def is_truncated(self, state, params):
            return state["time"] >= 2

    def step(params, carry, obs, reset):  # counts its own steps: a value for every row
        carry = carry + 1
        value = 10.0 * carry + jnp.zeros_like(obs[..., 0])
        return carry, Outputs(Categorical(jnp.zeros((*obs.shape[:-1], 2))), value)

    def unroll(params, carry, obs, reset):
        return jax.lax.scan(lambda carry, row: step(params, carry, *row), carry, (obs, reset))

    policy = Policy(lambda key: jnp.zeros(1), lambda n: jnp.zeros(n), step, unroll)
    env = envs.make(Hand(), 1)
    _, _, (batch,), _ = rollouts(
        env, policy, None, lambda s, b: s.value + b.target, unroll_length=4, returns=gae(0.9, 0.0)
    )
    # The value at the successor of row t is 10 (t + 2): what the carry then says, cut or not.
    np.testing.assert_allclose(batch.target[:, 0], 1 + 0.9 * np.array([20.0, 30.0, 40.0, 50.0]))


# --- weights ------------------------------------------------------------------------------------


class Prompted(Clock):
    """The first two actions of an episode are not the learner's."""

    def step_env(self, key, state, action, params):
        obs, after, reward, done, _ = super().step_env(key, state, action, params)
        return obs, after, reward, done, {"weight": state["time"] >= 2}


def test_a_weight_reaches_every_stage():
    env = envs.make(Prompted(end=0.0), B)
    loss = lambda student, batch: student.value + batch.advantage + batch.target
    keep = rewards.add(lambda batch, context: 10.0 * batch.weight)
    _, _, (batch,), (metrics,) = rollouts(
        env, plain(6), None, loss, unroll_length=10, rewards={"w": keep}
    )
    weight = np.tile([0, 0, 1, 1, 1], 2)[:, None] * np.ones((1, B))
    np.testing.assert_array_equal(batch.weight, weight)
    np.testing.assert_array_equal(batch.streams[""] - batch.reward, 10 * weight)
    assert not np.any(np.asarray(batch.advantage)[weight == 0])
    assert np.all(np.asarray(batch.advantage)[weight == 1])
    rows = np.asarray(batch.streams[""])[weight == 1]
    np.testing.assert_allclose(metrics["reward/w"], rows.mean(), rtol=1e-6)


def test_rows_of_weight_zero_are_not_learnt_from():
    """The update is that of the other rows alone, by hand, even if what the rows are paid is nan,
    and with it the term's gradient there.
    """
    env = envs.make(Prompted(end=0.0), B)
    student = plain(6)
    loss = lambda student, batch: jnp.square(student.value - batch.streams[""])
    spoil = lambda batch, context: jnp.where(batch.weight > 0, 0.0, jnp.nan)
    keywords = dict(unroll_length=5, num_minibatches=1, optimizer=optax.sgd(0.1))
    keywords |= dict(rewards={"spoilt": rewards.add(spoil)}, memory=RECORD)
    algorithm = jaxkd.distill(env, student, losses={"x": loss}, **keywords)
    before = algorithm.init(jax.random.key(0))
    after, metrics = jax.jit(algorithm.step)(before._replace(memory=()))
    batch = after.memory

    def by_hand(params):
        value = student.unroll(params, (), batch.obs, batch.reset)[1].value[2:]
        return jnp.mean(jnp.square(value - batch.reward[2:]))

    expected = jax.tree.map(
        lambda p, g: p - 0.1 * g, before.params, jax.grad(by_hand)(before.params)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after.params, expected)
    np.testing.assert_allclose(metrics["loss/x"], by_hand(before.params), rtol=1e-5)


def test_tasks_of_which_one_gives_weights():
    env = envs.concat(envs.make(Prompted(), 2), envs.make(Clock(), 2))
    state, _ = env.reset(jax.random.key(0))
    weight = env.step(jax.random.key(1), state, jnp.zeros(4, jnp.int32))[1].weight
    np.testing.assert_array_equal(weight, [0, 0, 1, 1])

    def say(params, carry, obs, reset):
        return carry, Outputs(Categorical(jnp.zeros((*reset.shape, 2))), params + 0 * reset)

    policy = Policy(lambda key: jnp.ones(()), lambda num_envs: (), say, say)
    one, still = losses.stateless(lambda student, batch: student.value), optax.sgd(0.0)
    ones = jaxkd.distill(env, policy, losses={"one": one}, unroll_length=2, optimizer=still)
    # Half of the minibatches has no weight: the mean is of the others.
    assert jaxkd.run(ones, jax.random.key(0), 1)[1]["loss/one"] == 1


def test_a_component_is_shown_what_its_stage_has():
    env = envs.make("CartPole-v1", 4)
    student = networks.mlp(env, (4,))
    for field in ("advantage", "streams", "weight"):
        read = rewards.add(lambda batch, context, field=field: 1.0 * getattr(batch, field))
        with pytest.raises(UsageError, match="reward 'late'"):
            jaxkd.ppo(env, student, rewards={"late": read})


def test_records_are_called_by_position():
    term = jaxkd.LossTerm(lambda k, s: (), lambda p, s, b, c: s.value - b.target)
    reward = jaxkd.RewardTransform(lambda k, s: (), lambda r, s, b, c: (2 * r, s))
    env = envs.make("CartPole-v1", 4)
    algorithm = jaxkd.distill(
        env, networks.mlp(env, (4,)), losses={"mine": term}, rewards={"mine": reward}
    )
    jaxkd.run(algorithm, jax.random.key(0), 1)


def test_no_component_has_a_stages_key():
    names, keys = ("act", "learn", "memory", "student", "env"), {}

    def peeking(name):
        def peek(reward, state, batch, context):
            keys[name] = context.key
            return reward + jax.random.normal(context.key, reward.shape), state

        return jaxkd.RewardTransform(lambda key, spec: (), peek)

    env = envs.make("CartPole-v1", 2)
    paid = {name: peeking(name) for name in names}
    ppo = jaxkd.ppo(env, networks.mlp(env, (4,)), rewards=paid, num_minibatches=1)
    state = ppo.init(jax.random.key(0))
    ppo.step(state)
    for name in names:
        stage = component_key(jax.random.fold_in(state.key, 0), name)
        assert not jnp.array_equal(jax.random.key_data(stage), jax.random.key_data(keys[name]))


# --- carries ------------------------------------------------------------------------------------


def test_only_the_carries_that_begin_sequences_are_kept():
    """Memory falls with the sequence length as predicted, and the carries are those of the rows."""
    env = envs.make("CartPole-v1", 64)
    student = networks.lstm(env, (8,), units=512)  # 4 KiB a carry, 256 KiB for all environments

    def needed(length):
        kd = jaxkd.distill(
            env,
            student,
            student,
            losses={"kl": losses.forward_kl()},
            sequence_length=length,
            unroll_length=32,
            num_minibatches=1,
        )
        params = jax.eval_shape(student.init, jax.random.key(0))
        return jaxkd.memory_needed(kd, jax.random.key(0), 1, params)

    carries = 64 * 512 * 2 * 4  # bytes of one row of carries
    assert needed(4) < needed(32) + 3 * (32 // 4) * carries < needed(32) + 32 * carries


def test_what_is_not_trained_has_no_moments():
    """The policy says it: no name decides, no optimizer touches it."""
    env = envs.make("CartPole-v1", 4)
    policy = networks.mlp(env, (4,))
    frozen = policy._replace(
        init=lambda key: {"statistics": policy.init(key), "scale": jnp.ones(3)},
        step=lambda p, c, o, r: policy.step(p["statistics"], c, o, r),
        unroll=lambda p, c, o, r: policy.unroll(p["statistics"], c, o, r),
        trainable=lambda p: jax.tree.map(lambda x: True, p) | {"scale": False},
    )
    ppo = jaxkd.ppo(env, frozen, optimizer=optax.adamw(1e-2, weight_decay=0.5))
    state = ppo.init(jax.random.key(0))
    after, _ = jax.jit(ppo.step)(state)
    np.testing.assert_array_equal(after.params["scale"], 1.0)
    moved = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)), after.params["statistics"], state.params["statistics"]
    )
    assert all(jax.tree.leaves(moved))
    shapes = [x.shape for x in jax.tree.leaves(state.opt_state)]
    assert (3,) not in shapes
