"""The adapter against gymnax's own `step`, and what it adds: specs, groups, time limits, errors.

gymnax is imported inside the tests that need it: collecting this file stays quick.
"""

import contextlib
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxkd.base import Box, Discrete, UsageError
from jaxkd.envs import ids, make, tasks

B, T, LIMIT = 5, 45, 17
# Without fusion every operation rounds by itself, so equal bits mean equal operations; fused, the
# last bit depends on the neighbours. Level 0 compiles faster.
QUICKLY = {"xla_backend_optimization_level": 0}
UNFUSED = QUICKLY | {"xla_disable_hlo_passes": "fusion"}
# Their numbers are whole, so nothing rounds; unfused they compile three times as long.
WHOLE = ("MinAtar", "FourRooms", "MetaMaze", "FrozenLake", "Catch", "DeepSea")

IDS = """CartPole-v1 Pendulum-v1 Acrobot-v1 MountainCar-v0 MountainCarContinuous-v0
Asterix-MinAtar Breakout-MinAtar Freeway-MinAtar Seaquest-MinAtar SpaceInvaders-MinAtar
Catch-bsuite DeepSea-bsuite MemoryChain-bsuite UmbrellaChain-bsuite DiscountingChain-bsuite
SimpleBandit-bsuite FourRooms-misc MetaMaze-misc PointRobot-misc BernoulliBandit-misc
GaussianBandit-misc Reacher-misc Swimmer-misc Pong-misc FrozenLake-misc""".split()


def strong(tree):
    return jax.tree.map(
        lambda leaf: jax.lax.convert_element_type(leaf, jnp.asarray(leaf).dtype), tree
    )


def structure(tree):
    """Shape, dtype and weakness of every leaf."""
    return jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), jax.eval_shape(lambda: tree)
    )


def rollout(env, key, num_steps, action=None):
    """-> (first env_state, first obs, env_states [T, B], TimeSteps [T, B]); `action` [B] or zeros
    at every step.
    """
    if action is None:
        action = jnp.zeros(env.num_envs, jnp.int32)

    def body(env_state, key_step):
        env_state, step = env.step(key_step, env_state, action)
        return env_state, (env_state, step)

    key_reset, key_steps = jax.random.split(key)
    env_state, obs = env.reset(key_reset)
    _, (env_states, steps) = jax.lax.scan(body, env_state, jax.random.split(key_steps, num_steps))
    return env_state, obs, env_states, steps


def assert_trees_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# --- against gymnax ------------------------------------------------------------------------------


def both_rollouts(env, theirs, params, actions, scale, encode):
    """One scan over jaxkd's environment and gymnax's on the same keys: -> ((ours, theirs) at the
    reset, the same [T, B]).
    """

    def record(obs, next_obs, reward, terminated, truncated):
        flags = terminated.astype(jnp.float32), (truncated & ~terminated).astype(jnp.float32)
        return (encode(obs), encode(next_obs), reward.astype(jnp.float32), *flags)

    def body(carry, xs):
        ours, reference = carry
        key, action = xs
        ours, step = env.step(key, ours, action)
        obs, reference, reward, terminated, truncated, info = jax.vmap(
            theirs.step, (0, 0, 0, None)
        )(jax.random.split(key, B), reference, action * scale, params)
        reference = strong(reference)
        assert step.weight == ()  # gymnax says nothing of it
        return (ours, reference), (
            (tuple(step)[:-1], ours),
            (record(obs, info["final_observation"], reward, terminated, truncated), reference),
        )

    key_reset, key_steps = jax.random.split(jax.random.key(3))
    ours, obs = env.reset(key_reset)
    their_obs, reference = strong(
        jax.vmap(theirs.reset, (0, None))(jax.random.split(key_reset, B), params)
    )
    _, steps = jax.lax.scan(body, (ours, reference), (jax.random.split(key_steps, T), actions))
    return ((obs, ours), (encode(their_obs), reference)), steps


@pytest.mark.parametrize("name", IDS)
def test_bit_equal_to_gymnax(name, monkeypatch):
    import gymnax

    whole = any(word in name for word in WHOLE)
    if not whole:  # its hundreds of operations, one by one; test_cpu.py: the same bits
        monkeypatch.setattr("jaxkd.envs.batch.unrolled", lambda key: key)
    limit = 8 if name == "DeepSea-bsuite" else LIMIT
    theirs, params = gymnax.make(name)
    params = params.replace(max_steps_in_episode=type(params.max_steps_in_episode)(limit))
    # gymnax's Swimmer itself adds arrays of different rank.
    with jax.numpy_rank_promotion("allow") if name == "Swimmer-misc" else contextlib.nullcontext():
        env = make(name, B, max_steps=limit)
        if isinstance(env.action_space, Discrete):
            actions = jax.random.randint(jax.random.key(1), (T, B), 0, env.action_space.n)
            scale = 1
        else:
            actions = jax.random.uniform(
                jax.random.key(1), (T, B, *env.action_space.shape), minval=-1.0
            )
            scale = {"Pendulum-v1": 2.0, "PointRobot-misc": 0.1}.get(name, 1.0)
        encode = (
            (lambda obs: jax.nn.one_hot(obs, 16)) if name == "FrozenLake-misc" else lambda obs: obs
        )
        # The parameters are closed over on both sides: XLA divides by a constant otherwise than by
        # a variable.
        both = jax.jit(
            lambda actions: both_rollouts(env, theirs, params, actions, scale, encode),
            compiler_options=QUICKLY if whole else UNFUSED,
        )
        starts, steps = both(actions)
    assert_trees_equal(*starts)
    assert_trees_equal(*steps)
    (obs, *_, terminated, truncated), _ = steps[0]
    assert np.all(
        np.sum(terminated + truncated, axis=0) >= T // limit
    )  # every environment went through resets
    assert env.max_steps == limit and env.truncates and env.name == name
    assert (obs.shape[2:], obs.dtype) == (env.obs_spec.shape, env.obs_spec.dtype)


def test_ids_are_gymnax_without_the_download_and_our_own():
    import gymnax

    others = set(gymnax.registered_envs) - {"MNISTBandit-bsuite"}
    assert set(ids()) == others | set(tasks.NAMED)
    assert set(IDS) <= set(ids())


@pytest.mark.parametrize(
    "name",
    [
        "Pendulum-v1",
        "SimpleBandit-bsuite",
        "UmbrellaChain-bsuite",
        "MetaMaze-misc",
        "BernoulliBandit-misc",
    ],
)
@pytest.mark.parametrize("group_size", [1, 2])
def test_strong_types_that_a_step_keeps(name, group_size):
    env = make(name, 4, group_size=group_size)
    env_state, obs = env.reset(jax.random.key(0))
    action = jnp.zeros(
        (4, *getattr(env.action_space, "shape", ())),
        jnp.float32 if isinstance(env.action_space, Box) else jnp.int32,
    )
    after, step = jax.eval_shape(env.step, jax.random.key(0), env_state, action)
    assert structure(env_state) == structure(after)
    assert structure(obs) == structure(step.obs) == structure(step.next_obs)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((after, step)))
    assert [leaf.dtype for leaf in step[2:5]] == [jnp.float32] * 3
    assert all(leaf.shape[0] == 4 for leaf in jax.tree.leaves((after, step)))


def test_default_limits_and_specs():
    assert make("CartPole-v1", 2).max_steps == 500
    bandit = make("BernoulliBandit-misc", 2)  # its limit is the float 100.0
    assert bandit.max_steps == 100 and type(bandit.max_steps) is int
    assert make("Catch-bsuite", 2).obs_spec == jax.ShapeDtypeStruct(
        (10, 5), jnp.float32
    )  # gymnax's space says int32
    assert make("FourRooms-misc", 2).obs_spec.dtype == jnp.int32  # and float32 here
    assert make("Reacher-misc", 2).action_space == Box((2,))
    assert make("Catch-bsuite", 2, rows=6, columns=3).obs_spec.shape == (6, 3)
    assert make("CartPole-v1", 2, max_steps_in_episode=7).max_steps == 7


def test_a_termination_on_the_last_step_is_a_termination():
    env = make("DeepSea-bsuite", 3)
    *_, steps = rollout(env, jax.random.key(0), 24)
    np.testing.assert_array_equal(
        steps.terminated, np.tile([0, 0, 0, 0, 0, 0, 0, 1], 3)[:, None].repeat(3, 1)
    )
    assert not np.any(steps.truncated)
    np.testing.assert_array_equal(steps.next_obs[7], 0.0)  # below the last row
    np.testing.assert_array_equal(steps.obs[7], steps.obs[15])


def test_a_termination_at_the_limit_without_a_step_of_its_own():
    *_, steps = rollout(
        make("Catch-bsuite", 2, max_steps=9), jax.random.key(0), 9
    )  # the ball arrives at the 9th step
    np.testing.assert_array_equal(steps.terminated[:, 0], [0] * 8 + [1])
    assert not np.any(steps.truncated)


def test_deep_sea_keeps_its_counters_over_resets():
    _, _, env_states, _ = rollout(make("DeepSea-bsuite", 3), jax.random.key(0), 24)
    assert np.all(env_states.total_bad_episodes[-1] == 3)


def test_discrete_observation_is_one_hot():
    env = make("FrozenLake-misc", 2, map_name="8x8", is_slippery=False)
    assert env.obs_spec == jax.ShapeDtypeStruct((64,), jnp.float32) and env.max_steps == 200
    env_state, obs = env.reset(jax.random.key(0))
    _, step = env.step(jax.random.key(1), env_state, jnp.array([1, 2]))  # down, right
    assert np.argmax(obs, 1).tolist() == [0, 0] and np.argmax(step.obs, 1).tolist() == [8, 1]
    np.testing.assert_array_equal(step.obs.sum(1), 1.0)


# --- actions -------------------------------------------------------------------------------------


class Echo:
    """A plain object without gymnax: the observation is the action that arrived, and nothing ends
    it.
    """

    def __init__(self, space: Any):
        self.space = space

    def action_space(self, params):
        return self.space

    def is_truncated(self, state, params):
        return False

    def reset_env(self, key, params):
        zeros = jnp.zeros(getattr(self.space, "shape", ()))
        return zeros, zeros

    def step_env(self, key, state, action, params):
        return action, action, jnp.sum(action), False, {}


def echo(space, action):
    """What an action becomes, [B, ...]."""
    env = make(Echo(space), len(action))
    env_state, _ = env.reset(jax.random.key(0))
    return env, env.step(jax.random.key(1), env_state, jnp.asarray(action))[1].obs


def test_box_is_clipped_scaled_and_reshaped():
    space = SimpleNamespace(low=np.array([[0.0, -3.0]]), high=np.array([[4.0, -1.0]]), shape=(1, 2))
    env, received = echo(space, [[-1.0, 1.0], [0.0, 0.0], [0.5, -0.5], [9.0, -9.0]])
    assert env.action_space == Box((2,)) and env.name == "Echo"
    np.testing.assert_allclose(
        received, [[[0.0, -1.0]], [[2.0, -2.0]], [[3.0, -2.5]], [[4.0, -3.0]]], rtol=1e-6
    )


def test_unbounded_box_is_only_clipped():
    space = SimpleNamespace(
        low=jnp.array([-jnp.inf, 0.0, 0.0]), high=jnp.array([jnp.inf, jnp.inf, 4.0]), shape=(3,)
    )
    _, received = echo(space, [[5.0, -5.0, 0.0], [-5.0, 5.0, 2.0]])
    np.testing.assert_array_equal(received, [[5.0, 0.0, 2.0], [-5.0, 5.0, 4.0]])


def test_no_gradient_is_nan_where_a_bound_is_infinite():
    space = SimpleNamespace(low=-jnp.inf, high=jnp.inf, shape=(2,))
    gradient = jax.grad(lambda action: jnp.sum(echo(space, action)[1]))(jnp.ones((3, 2)))
    np.testing.assert_array_equal(gradient, 1.0)


def test_mountain_car_is_charged_the_clipped_action():
    env = make("MountainCarContinuous-v0", 2)
    env_state, _ = env.reset(jax.random.key(0))
    _, step = env.step(jax.random.key(1), env_state, jnp.array([[1.0], [30.0]]))
    np.testing.assert_allclose(step.reward, [-0.1, -0.1], rtol=1e-6)


def test_spaces_of_base_are_understood():
    assert echo(Discrete(3), [2.0])[0].action_space == Discrete(3)
    env, received = echo(Box((2,)), [[0.5, -7.0]])
    assert env.action_space == Box((2,))
    np.testing.assert_array_equal(received, [[0.5, -1.0]])


def test_bounds_may_be_traced():
    def first_obs(torque):
        env = make("Pendulum-v1", 2, max_torque=torque, max_steps=9)
        env_state, _ = env.reset(jax.random.key(0))
        return env.step(jax.random.key(1), env_state, jnp.ones((2, 1)))[1].obs

    swept = jax.jit(jax.vmap(first_obs))(jnp.array([0.5, 2.0]))
    np.testing.assert_allclose(swept[1], first_obs(2.0), rtol=1e-5)
    assert np.all(np.abs(swept[0] - swept[1])[:, 2] > 0.1)


# --- groups --------------------------------------------------------------------------------------


def test_episodes_of_a_group_begin_alike():
    env = make("CartPole-v1", 6, group_size=3, max_steps=4)
    assert env.group_size == 3
    env_state, obs, env_states, steps = jax.jit(rollout, static_argnums=(0, 2))(
        env, jax.random.key(0), 8
    )
    starts = [obs, steps.obs[3], steps.obs[7]]  # the limit ends every episode together
    np.testing.assert_array_equal(steps.truncated[:, 0], [0, 0, 0, 1, 0, 0, 0, 1])
    for n, start in enumerate(starts):
        for group in (start[:3], start[3:]):
            np.testing.assert_array_equal(group, group[:1].repeat(3, 0))
        assert np.all(start[0] != start[3]), "groups differ"
        assert n == 0 or np.all(start != starts[n - 1]), "episodes differ"
    np.testing.assert_array_equal(env_states.episode[7], 2)
    # The definition itself: reset_env(fold_in(group_key, n)).
    import gymnax

    theirs, params = gymnax.make("CartPole-v1")
    group_key = jax.random.split(jax.random.split(jax.random.key(0))[0], 2)[1]
    for n, start in enumerate(starts):
        np.testing.assert_array_equal(
            start[3], theirs.reset_env(jax.random.fold_in(group_key, n), params)[0]
        )


def test_members_are_counted_apart_and_step_apart():
    env = make("Catch-bsuite", 4, group_size=2)
    *_, env_states, _ = rollout(env, jax.random.key(0), 20)
    assert np.all(env_states.episode[-1] == 2)  # an episode is 9 steps
    slippery = make("FrozenLake-misc", 64, group_size=64)
    _, obs, _, steps = rollout(slippery, jax.random.key(0), 1)
    assert (
        len(np.unique(np.argmax(obs, 1))) == 1
        and len(np.unique(np.argmax(steps.next_obs[0], 1))) > 1
    )
    early = make(Fuse(), 4, group_size=4, fuse=2, max_steps=9)
    action = jnp.array([0, 0, 1, 1])  # burns twice as fast
    *_, env_states, steps = rollout(early, jax.random.key(0), 4, action)
    np.testing.assert_array_equal(env_states.episode[-1], [2, 2, 4, 4])
    noise = steps.obs["noise"]
    assert noise[1, 0] == noise[0, 2] != 0  # the second episode, whenever it begins
    assert noise[3, 0] == noise[1, 2] != noise[1, 0]


def test_groups_with_a_step_of_its_own():
    env = make("DeepSea-bsuite", 4, group_size=2)
    _, obs, env_states, steps = rollout(env, jax.random.key(0), 9)
    np.testing.assert_array_equal(steps.obs[7], obs)
    np.testing.assert_array_equal(env_states.episode[:, 0], [0] * 7 + [1, 1])
    np.testing.assert_array_equal(env_states.inner.row[7:, 0], [0, 1])


# --- parameters and other people's environments --------------------------------------------------


def test_traced_parameters():
    def returns(length):
        *_, steps = rollout(
            make("CartPole-v1", 3, length=length, max_steps=20), jax.random.key(0), 20
        )
        return steps.obs

    swept = jax.jit(jax.vmap(returns))(jnp.array([0.5, 1.5]))
    np.testing.assert_allclose(swept[0], returns(0.5), rtol=1e-4, atol=1e-5)
    assert not np.allclose(swept[0], swept[1])


def test_traced_env_params():
    import gymnax

    params = gymnax.make("CartPole-v1")[1]
    batch = jax.tree.map(lambda leaf: jnp.full(2, leaf), params)  # the limit is traced as well
    truncated = jax.vmap(
        lambda p: (
            rollout(make("CartPole-v1", 2, env_params=p, max_steps=3), jax.random.key(0), 3)[
                -1
            ].truncated
        )
    )(batch)
    np.testing.assert_array_equal(truncated[:, :, 0], [[0, 0, 1]] * 2)
    with pytest.raises(
        UsageError, match="max_steps_in_episode of 'CartPole-v1' is traced.* give max_steps="
    ):
        jax.vmap(lambda p: make("CartPole-v1", 2, env_params=p).reset(jax.random.key(0))[1])(batch)


def test_made_under_jit_it_leaks_nothing():
    made = []
    jax.jit(lambda key: made.append(make("PointRobot-misc", 2)) or key)(jax.random.key(0))
    env_state, obs = made[0].reset(jax.random.key(0))
    made[0].step(jax.random.key(0), env_state, jnp.zeros((2, 2)))
    assert obs.shape == (2, 6)


@struct.dataclass
class FuseParams:
    fuse: int = 3


class FuseState(NamedTuple):
    left: jax.Array


class Fuse:
    """Ends when the fuse is burnt: `done` in gymnax's old style, no time in the state. Observations
    are a dict.
    """

    default_params = FuseParams()

    def action_space(self, params):
        return Discrete(2)

    def _observe(self, state, noise):
        return {"left": state.left, "noise": noise}

    def reset_env(self, key, params):
        state = FuseState(jnp.asarray(params.fuse, jnp.int32))
        return self._observe(state, jax.random.uniform(key)), state

    def step_env(self, key, state, action, params):
        state = FuseState(state.left - 1 - action)
        return (
            self._observe(state, jnp.float32(0.0)),
            state,
            1,
            state.left <= 0,
            {"unused": "text is no array"},
        )


class ClockState(NamedTuple):
    timestep: jax.Array


@struct.dataclass
class ClockParams:
    max_timesteps: int = 4


class Clock:
    """Craftax's style: `done` holds both the natural end (action 1) and the time limit."""

    default_params = ClockParams()

    def action_space(self, params):
        return Discrete(2)

    def reset_env(self, key, params):
        return jnp.zeros(1), ClockState(0)

    def step_env(self, key, state, action, params):
        state = ClockState(state.timestep + 1)
        return (
            jnp.ones(1) * state.timestep,
            state,
            1.0,
            (action == 1) | (state.timestep >= params.max_timesteps),
            {},
        )


def test_dict_observations_and_an_object():
    with pytest.warns(
        UserWarning, match="'Fuse' has no is_truncated .* every end counts as a termination"
    ):
        env = make(Fuse(), 2)
    assert env.obs_spec == {
        "left": jax.ShapeDtypeStruct((), jnp.int32),
        "noise": jax.ShapeDtypeStruct((), jnp.float32),
    }
    assert env.max_steps is None and not env.truncates
    *_, steps = rollout(env, jax.random.key(0), 6, jnp.array([0, 1]))
    np.testing.assert_array_equal(
        steps.terminated, [[0, 0], [0, 1], [1, 0], [0, 1], [0, 0], [1, 1]]
    )
    np.testing.assert_array_equal(steps.next_obs["left"][:, 0], [2, 1, 0, 2, 1, 0])
    np.testing.assert_array_equal(steps.obs["left"][:, 0], [2, 1, 3, 2, 1, 3])
    assert not np.any(steps.truncated) and steps.reward.dtype == jnp.float32


def test_the_warning_is_said_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env = make(Fuse(), 2)
        rollout(env, jax.random.key(0), 2)
        make(Fuse(), 2, max_steps=9)  # the user has answered it
        make(Clock(), 2)
    assert [
        str(warning.message).count("max_steps=")
        for warning in caught
        if warning.category is UserWarning
    ] == [1]
    assert caught[0].filename == __file__


def test_a_time_limit_where_there_is_none():
    env = make(Fuse(), 2, fuse=6, max_steps=4)
    assert env.max_steps == 4 and env.truncates
    _, _, env_states, steps = rollout(env, jax.random.key(0), 8, jnp.array([0, 1]))
    np.testing.assert_array_equal(steps.truncated[:, 0], [0, 0, 0, 1, 0, 0, 0, 1])
    np.testing.assert_array_equal(steps.terminated[:, 1], [0, 0, 1, 0, 0, 1, 0, 0])
    assert not np.any(steps.terminated[:, 0]) and not np.any(steps.truncated[:, 1])
    np.testing.assert_array_equal(env_states.time[:, 1], [1, 2, 0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(steps.obs["left"][3], [6, 4])
    both = make(Fuse(), 1, fuse=4, max_steps=4)  # burnt on the last step
    *_, steps = rollout(both, jax.random.key(0), 4)
    assert steps.terminated[3, 0] == 1 and steps.truncated[3, 0] == 0


def test_five_values_with_a_time_limit_are_divided():
    env = make(Clock(), 2)
    assert env.max_steps == 4 and env.truncates
    *_, steps = rollout(env, jax.random.key(0), 5, jnp.array([0, 1]))
    np.testing.assert_array_equal(steps.truncated, [[0, 0], [0, 0], [0, 0], [1, 0], [0, 0]])
    np.testing.assert_array_equal(steps.terminated, [[0, 1]] * 5)
    np.testing.assert_array_equal(steps.next_obs[3], [[4.0], [1.0]])
    shorter = make(Clock(), 1, max_steps=2)
    np.testing.assert_array_equal(
        rollout(shorter, jax.random.key(0), 4)[-1].truncated[:, 0], [0, 1, 0, 1]
    )


def test_a_limit_in_the_parameters_that_the_state_does_not_show():
    class Hidden(Clock):
        def reset_env(self, key, params):
            return jnp.zeros(1), {"t": jnp.int32(0)}

        def step_env(self, key, state, action, params):
            obs, clock, *rest = super().step_env(key, ClockState(state["t"]), action, params)
            return obs, {"t": clock.timestep}, *rest

    with pytest.warns(UserWarning, match="'Hidden' has no is_truncated"):
        assert make(Hidden(), 1).max_steps is None
    *_, steps = rollout(make(Hidden(), 2, max_steps=3), jax.random.key(0), 3, jnp.array([0, 1]))
    np.testing.assert_array_equal(steps.truncated, [[0, 0], [0, 0], [1, 0]])
    np.testing.assert_array_equal(steps.terminated, [[0, 1]] * 3)


def test_a_registered_environment():
    import gymnax

    class Small(gymnax.environments.environment.Environment):
        def __init__(self, size=3):
            self.size = size

        def action_space(self, params):
            return Discrete(self.size)

        def reset_env(self, key, params):
            state = gymnax.EnvState(time=0)
            return jnp.zeros(self.size), state

        def step_env(self, key, state, action, params):
            state = gymnax.EnvState(time=state.time + 1)
            return jnp.full(self.size, 1.0), state, 0.0, action == 2, {}

    if "Small-test" not in gymnax.registered_envs:
        gymnax.register("Small-test", Small)
    assert "Small-test" in ids()
    env = make("Small-test", 2, size=4, max_steps_in_episode=2)
    assert env.obs_spec.shape == (4,) and env.action_space == Discrete(4) and env.max_steps == 2
    *_, steps = rollout(env, jax.random.key(0), 2, jnp.array([0, 2]))
    np.testing.assert_array_equal(steps.truncated, [[0, 0], [1, 0]])
    np.testing.assert_array_equal(steps.terminated, [[0, 1], [0, 1]])


# --- pooled resets -------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", [1, 3, 8, 11])
def test_every_episode_that_ends_gets_a_beginning_of_its_own(pool):
    """All eight environments end in every step: beginnings are drawn more than once a step, and
    none is given twice.
    """
    env = make("CartPole-v1", 8, max_steps=1, reset_pool=pool)
    _, obs, env_states, steps = rollout(env, jax.random.key(0), 25)
    assert np.all(steps.truncated == 1)
    beginnings = np.concatenate([steps.obs.reshape(-1, 4), obs])
    assert len(np.unique(beginnings, axis=0)) == len(beginnings) == 26 * 8
    assert np.abs(beginnings).max() <= 0.05 and np.all(env_states.time == 0)
    np.testing.assert_array_equal(
        steps.obs,
        np.stack([env_states.x, env_states.x_dot, env_states.theta, env_states.theta_dot], axis=-1),
    )


def test_pooled_resets_are_equal_in_distribution():
    """Who gets which beginning depends on who ended, never on the beginning: each number stays
    uniform, for every environment.
    """
    from scipy import stats

    env = make("CartPole-v1", 4, max_steps=3, reset_pool=2)
    *_, steps = rollout(env, jax.random.key(1), 3000)
    for i in range(4):
        beginnings = np.asarray(steps.obs[:, i])[np.asarray(steps.truncated[:, i]) == 1]
        assert len(beginnings) == 1000
        for number in beginnings.T:
            assert stats.kstest(number, "uniform", (-0.05, 0.1)).pvalue > 1e-4


@pytest.mark.parametrize("name", ["MountainCar-v0", "Breakout-MinAtar"])
def test_a_pool_changes_beginnings_and_nothing_else(name):
    """The same trajectory to the end of the first episode; others go on untouched; the limit that
    the adapter counts starts again.
    """
    both = [
        rollout(make(name, 4, reset_pool=pool, max_steps=50), jax.random.key(2), 60)[-1]
        for pool in (None, 2)
    ]
    ended = np.cumsum(both[0].terminated + both[0].truncated, axis=0)
    before = np.concatenate([np.zeros((1, 4)), ended[:-1]]) == 0
    for plain, pooled in zip(
        both[0][1:5], both[1][1:5], strict=True
    ):  # all but the observation that follows an end
        np.testing.assert_array_equal(plain[before], pooled[before])
    np.testing.assert_array_equal(both[0].obs[ended == 0], both[1].obs[ended == 0])
    assert np.all(ended[-1] >= 1)


def test_pooled_resets_in_lanes():
    """A lane waits for the others and is what it is alone."""
    env = make("CartPole-v1", 8, max_steps=4, reset_pool=3)
    keys = jax.random.split(jax.random.key(0), 3)
    lanes = jax.vmap(lambda key: rollout(env, key, 30)[-1])(keys)
    for i, key in enumerate(keys):
        alone = rollout(env, key, 30)[-1]
        for lane, wanted in zip(jax.tree.leaves(lanes), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(lane[i], wanted, rtol=1e-6, atol=1e-7)


# --- errors --------------------------------------------------------------------------------------


class Unstable(Echo):
    """Begins with an int and goes on with a float, which a cast would round off."""

    def reset_env(self, key, params):
        return jnp.zeros(()), {"x": 0}

    def step_env(self, key, state, action, params):
        return jnp.zeros(()), {"x": state["x"] + 0.5}, 0.0, False, {}


class Column(Echo):
    """A reward of shape (1,), which would broadcast in silence."""

    def step_env(self, key, state, action, params):
        return state, state, jnp.ones(1), False, {}


def one_step(environment):
    env = make(environment, 1)
    env.step(jax.random.key(0), env.reset(jax.random.key(0))[0], jnp.zeros(1))


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: make("Cartpole-v1", 4),
            "unknown environment 'Cartpole-v1'. Did you mean 'CartPole-v1'? (jaxkd envs lists all)",
        ),
        (
            lambda: make("breakout", 4),
            "unknown environment 'breakout'. Did you mean 'Breakout-MinAtar'? "
            "(jaxkd envs lists all)",
        ),
        (lambda: make("xyzzy", 4), "unknown environment 'xyzzy'. (jaxkd envs lists all)"),
        (
            lambda: make("MNISTBandit-bsuite", 4),
            "'MNISTBandit-bsuite' downloads MNIST when it is made, which jaxkd never does",
        ),
        (lambda: make("Catch-bsuite", 4, rowz=3), "'Catch-bsuite' does not take rowz ("),
        (
            lambda: make("Catch-bsuite", 4, rowz=3),
            "Parameters: max_steps_in_episode. Constructor arguments: rows, columns",
        ),
        (
            lambda: make(Clock(), 4, size=3),
            "'Clock' is made already, so size cannot go to its constructor",
        ),
        (lambda: make(Clock(), 4, size=3), "Parameters: max_timesteps"),
        (
            lambda: make("CartPole-v1", -1),
            "num_envs must be a positive int (sizes are static), got -1",
        ),
        (
            lambda: make("CartPole-v1", 4.0),
            "num_envs must be a positive int (sizes are static), got 4.0",
        ),
        (lambda: make("CartPole-v1", 4, group_size=0), "group_size must be a positive int"),
        (lambda: make("CartPole-v1", 4, max_steps=0), "max_steps must be a positive int"),
        (lambda: make("CartPole-v1", 4, reset_pool=0), "reset_pool must be a positive int"),
        (
            lambda: make("CartPole-v1", 4, group_size=2, reset_pool=2),
            "'CartPole-v1' begins episodes alike in groups of 2, so no pool can",
        ),
        (
            lambda: make("DeepSea-bsuite", 4, reset_pool=2),
            "'DeepSea-bsuite' resets itself in its own step, so no pool can give it",
        ),
        (
            lambda: make("CartPole-v1", 10, group_size=4),
            "num_envs = 10 is not divisible by group_size = 4; nearest: 2, 5",
        ),
        (
            lambda: make(Clock, 4),
            "is no environment: give one of jaxkd.envs.ids(), or an object with reset_env and "
            "step_env",
        ),
        (lambda: make(3, 4), "'int' is no environment"),
        (
            lambda: make(Echo(SimpleNamespace(spaces=())), 4),
            "'Echo' has the action space namespace(spaces=())",
        ),
        (
            lambda: one_step(Unstable(Discrete(2))),
            "env_state.x of 'Unstable' is int32 after a reset, float32 after a step: make "
            "reset_env",
        ),
        (
            lambda: one_step(Column(Box((1,)))),
            "reward of 'Column' has shape (1,), but must be a scalar",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        call()


def test_a_wrapper_that_only_forwards_is_refused():
    import gymnax
    from gymnax.wrappers import purerl

    wrapper = purerl.FlattenObservationWrapper(gymnax.make("Catch-bsuite")[0])
    with pytest.raises(UsageError, match="forwards reset_env to the environment it wraps"):
        make(wrapper, 2)


def test_import_is_lazy():
    program = """import jaxkd.envs, sys
assert 'gymnax' not in sys.modules
jaxkd.envs.ids()
assert 'gymnax' in sys.modules"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_first_import_of_gymnax_inside_a_trace_leaves_no_tracers():
    """FrozenLake's module makes an array when imported; in a fresh process, where the first `make`
    is inside jit.
    """
    code = """
import jax, jaxkd
jax.jit(lambda key: jaxkd.envs.make("CartPole-v1", 2).reset(key)[1])(jax.random.key(0))
env = jaxkd.envs.make("FrozenLake-misc", 2)
state, obs = env.reset(jax.random.key(0))
print(env.step(jax.random.key(1), state, jax.numpy.zeros(2, int))[1].obs.shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "(2, 16)\n", done.stderr[-2000:]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_rows_that_stay_close_up_as_in_gymnax(share, key):
    from gymnax.environments.minatar import seaquest_helpers

    from jaxkd.envs.seaquest import compact

    entities = jax.random.randint(key, (50, 12, 4), -5, 10)
    keep = jax.random.bernoulli(jax.random.fold_in(key, 1), share, (50, 12))
    ours, theirs = (
        jax.jit(jax.vmap(fn))(entities, keep) for fn in (compact, seaquest_helpers.compact)
    )
    assert_trees_equal(ours, theirs)
    assert [x.dtype for x in ours] == [x.dtype for x in theirs]


@pytest.mark.slow
def test_seaquest_with_room_for_32_is_the_same_game():
    """Frame by frame: observations, rewards, ends; and a list that is full is told."""
    exact, short = make("Seaquest-MinAtar", 16), make("Seaquest-MinAtar", 16, entities=32)

    def play(env, key):
        def body(env_state, keys):
            action = jax.random.randint(keys[0], (16,), 0, env.action_space.n)
            env_state, step = env.step(keys[1], env_state, action)
            return env_state, step._replace(next_obs=())

        return jax.lax.scan(body, env.reset(key)[0], jax.random.split(key, (200, 2)))[1]

    played = [
        jax.jit(lambda key, env=env: play(env, key))(jax.random.key(5)) for env in (exact, short)
    ]
    assert float(played[0].reward.sum()) > 0 and float(played[0].terminated.sum()) > 3
    for a, b in zip(*map(jax.tree.leaves, played), strict=True):
        np.testing.assert_array_equal(a, b)
    crowded = jax.jit(lambda key: play(make("Seaquest-MinAtar", 16, entities=2), key))(
        jax.random.key(5)
    )
    assert np.isnan(crowded.reward).any()
    with pytest.raises(UsageError, match="entities must be"):
        make("Seaquest-MinAtar", 16, entities=0)
