"""Sticky actions: what is repeated, when not, and that nothing else changes.

Legend of shapes: `T` time, `B` environments.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkd
from jaxkd import presets
from jaxkd.base import Box, Discrete, UsageError
from jaxkd.envs import concat, make

LIMIT = 3  # steps of an episode of `Echo`


class Echo:
    """The observation is the action that arrived; reset observes -1."""

    def __init__(self, space):
        self.space = space

    def action_space(self, params):
        return self.space

    def is_truncated(self, state, params):
        return False

    def reset_env(self, key, params):
        start = -jnp.ones(getattr(self.space, "shape", ()))
        return start, jax.random.uniform(key)

    def step_env(self, key, state, action, params):
        return action, state, 0.0, False, {}


def arrived(env, actions, seed=0):
    """What arrived in the environments [T, B, ...] for actions [T, B, ...], and their states."""

    def body(env_state, row):
        key, action = row
        env_state, now = env.step(key, env_state, action)
        return env_state, (now.next_obs, env_state)

    keys = jax.random.split(jax.random.key(seed), len(actions) + 1)
    env_state, _ = env.reset(keys[0])
    return jax.lax.scan(body, env_state, (keys[1:], actions))[1]


def test_always_sticky_is_the_first_action_of_every_episode():
    told = jnp.asarray(np.arange(7)[:, None] + np.array([0, 100]))  # [T, 2], each action once
    env = make(Echo(Discrete(1000)), 2, max_steps=LIMIT, sticky=1.0)
    assert env.sticky == 1.0 and env.name == "Echo"
    seen, _ = arrived(env, told)
    np.testing.assert_array_equal(seen[:, 0], [0, 0, 0, 3, 3, 3, 6])
    np.testing.assert_array_equal(seen[:, 1], [100, 100, 100, 103, 103, 103, 106])


@pytest.mark.parametrize("group_size", [1, 4])
def test_what_is_repeated_is_what_was_done_as_often_as_said(group_size):
    B, T = 2048, 6
    space = Box((2,))
    env = make(Echo(space), B, max_steps=LIMIT, sticky=0.3, group_size=group_size)
    told = jnp.broadcast_to(jnp.linspace(-0.9, 0.9, T)[:, None, None], (T, B, 2))
    seen, states = jax.jit(arrived, static_argnums=0)(env, told)
    new = (seen == told).all(-1)
    before = jnp.concatenate([seen[:1], seen[:-1]])
    assert (new | (seen == before).all(-1)).all()  # one or the other, a row as a whole
    assert new[0].all() and new[LIMIT].all()  # a first step repeats nothing
    stuck = 1 - np.asarray(new, float)[[1, 2, 4, 5]]  # [4, B]
    np.testing.assert_allclose(stuck.mean(1), 0.3, atol=0.05)  # 5 standard errors
    assert abs(np.corrcoef(stuck)[0, 1]) < 0.11 and stuck[:, :4].std(1).any()  # drawn one by one
    starts = states.inner.inner[LIMIT].reshape(-1, group_size)  # of the second episode
    assert (starts == starts[:, :1]).all() and len(np.unique(starts)) > 0.9 * B / group_size


def test_the_game_is_the_same_where_nothing_sticks():
    """A traced 0 wraps and repeats nothing; a plain 0 leaves the environment as it is."""
    plain = make("Catch-bsuite", 4)
    assert plain.sticky == 0.0 and not hasattr(plain.reset(jax.random.key(0))[0], "acted")
    told = jax.random.randint(jax.random.key(1), (8, 4), 0, 3)  # in one episode

    @jax.vmap
    def swept(probability):
        return arrived(make("Catch-bsuite", 4, sticky=probability), told)[0]

    never, always = jax.jit(swept)(jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(never, arrived(plain, told)[0])
    assert (never != always).any()


def test_a_learner_sees_what_it_chose():
    """The noise belongs to the game: the recorded action is the chosen one."""
    env = make(Echo(Discrete(50)), 8, max_steps=LIMIT, sticky=1.0)
    policy = jaxkd.networks.mlp(env, (4,))
    seen = {
        "chosen": jaxkd.losses.watch(lambda student, batch: 1.0 * batch.action),
        "done": jaxkd.losses.watch(lambda student, batch: 1.0 * batch.next_obs),
    }
    made = jaxkd.distill(env, policy, losses=seen, unroll_length=6, num_minibatches=1)
    metrics = jaxkd.run(made, jax.random.key(0), 1)[1]
    assert metrics["loss/chosen"][0] != metrics["loss/done"][0]
    assert ("sticky", "1.0") in made.description[1]


def test_together_and_by_preset():
    both = concat(make("Catch-bsuite", 2, sticky=0.5), make("CartPole-v1", 2))
    assert both.sticky == (0.5, 0.0)
    states, _ = both.reset(jax.random.key(0))
    _, now = both.step(jax.random.key(1), states, jnp.zeros(4, jnp.int32))
    assert now.obs["obs"].shape == (4, 50)
    chosen = presets.preset("CartPole-v1")._replace(num_envs=8, sticky=0.25)
    env = presets.make_env("CartPole-v1", chosen)
    assert env.sticky == 0.25 and presets.method_env(env, "grpo").sticky == 0.25


@pytest.mark.parametrize(
    "sticky, message",
    [
        (-0.1, "sticky must be in [0, 1], got -0.1"),
        (1.5, "sticky must be in [0, 1], got 1.5"),
        (float("nan"), "sticky must be in [0, 1], got nan"),
        (True, "sticky must be the probability that an action is repeated"),
        ("0.1", "sticky must be the probability that an action is repeated"),
        (None, "such as 0.1, got None"),
        (np.full(2, 0.1), "sticky is one probability, got an array of shape (2,)"),
    ],
)
def test_errors(sticky, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        make("CartPole-v1", 2, sticky=sticky)
