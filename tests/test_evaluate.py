"""Evaluation: whole episodes on a probe with known returns; the statistics of a claim."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxkd import envs, evaluate, interval, iqm
from jaxkd.base import Discrete, Outputs, Policy, UsageError
from jaxkd.distributions import Categorical


class Params(NamedTuple):
    max_steps_in_episode: int = 8


class Coin:
    """Half of the episodes last 2 steps, half are cut at the limit of 8.

    Step t pays t, action 1 ten times that.
    """

    name, default_params = "Coin", Params()

    def reset_env(self, key, params):
        state = {"time": jnp.int32(0), "short": jax.random.bernoulli(key)}
        return self._obs(state), state

    def step_env(self, key, state, action, params):
        state = state | {"time": state["time"] + 1}
        reward = state["time"] * jnp.where(action == 1, 10.0, 1.0)
        return self._obs(state), state, reward, state["short"] & (state["time"] >= 2), {}

    def is_truncated(self, state, params):
        return state["time"] >= params.max_steps_in_episode

    def action_space(self, params):
        return Discrete(2)

    def _obs(self, state):
        return state["time"][None].astype(jnp.float32)


def constant(*logits):
    """A policy that says the same to every observation."""

    def step(params, carry, obs, reset):
        return carry, Outputs(Categorical(jnp.broadcast_to(params, (*obs.shape[:-1], len(logits)))))

    return Policy(lambda key: jnp.array(logits), lambda n: (), step, step)


def test_every_environment_plays_the_same_number_of_whole_episodes(key):
    """400 episodes on 80 environments of 5 each: half of them are long.

    Counting the first 400 that end would see mostly short ones. The long ones: 1 + ... + 8 = 36, at
    gamma = 1/2 4 - 10 / 128 = 3.921875; the short ones: 3, and 1 + 2 / 2 = 2.
    """
    env, policy = envs.make(Coin(), 80), constant(1.0, 0.0)
    result = evaluate(env, policy, policy.init(key), key, num_episodes=321, gamma=0.5)
    assert (
        result.returns.shape == result.lengths.shape == result.discounted_returns.shape == (400,)
    )  # rounded up
    assert result.lengths.dtype == jnp.int32
    long = np.asarray(result.lengths) == 8
    np.testing.assert_array_equal(result.lengths, np.where(long, 8, 2))
    np.testing.assert_array_equal(result.returns, np.where(long, 36, 3))
    np.testing.assert_allclose(result.discounted_returns, np.where(long, 3.921875, 2.0), rtol=1e-6)
    assert abs(long.mean() - 0.5) < 5 * 0.5 / np.sqrt(400)


def test_first_episodes_are_not_the_first_to_end(key):
    """One episode each: the fraction of long ones is that of the starts, 1/2.

    Of the first 400 endings it were about 1/5.
    """
    env, policy = envs.make(Coin(), 400), constant(1.0, 0.0)
    lengths = evaluate(env, policy, policy.init(key), key, num_episodes=400).lengths
    starts = env.reset(jax.random.split(key)[0])[0]["short"]
    np.testing.assert_array_equal(lengths, np.where(starts, 2, 8))


def test_greedy_takes_the_mode_and_sampled_does_not(key):
    """p(action 1) = 1/4. Greedy pays t, sampled t (1 + 9 / 4) on average.

    Another key samples other actions.
    """
    env, policy = envs.make(Coin(), 200), constant(np.log(3.0), 0.0)
    params = policy.init(key)
    greedy = evaluate(env, policy, params, key, num_episodes=200)
    assert set(np.unique(greedy.returns)) == {3.0, 36.0}
    sampled = evaluate(env, policy, params, key, num_episodes=200, greedy=False)
    rate = np.sum(sampled.returns) / np.sum(np.where(np.asarray(sampled.lengths) == 8, 36, 3))
    assert abs(rate - 3.25) < 0.5
    other = evaluate(env, policy, params, jax.random.key(9), num_episodes=200, greedy=False)
    assert not np.array_equal(sampled.returns, other.returns)
    play = lambda greedy: evaluate(env, policy, params, key, num_episodes=200, greedy=greedy)
    both = jax.vmap(play)(np.array([True, False]))  # traced: one program
    np.testing.assert_array_equal(both.returns, [greedy.returns, sampled.returns])
    # Its params are an input: another policy of the same network, nothing of the first is left.
    flipped = evaluate(env, policy, params[::-1], key, num_episodes=200)
    assert set(np.unique(flipped.returns)) == {30.0, 360.0}


def test_a_carry_starts_anew_with_every_episode(key):
    """The policy counts its steps since `reset` in its carry, and plays action 1 in the second.

    That is 1 + 20, or 1 + 20 + 3 + ... + 8.
    """

    def step(params, carry, obs, reset):
        carry = jnp.where(reset > 0, 0, carry) + 1
        return carry, Outputs(
            Categorical(
                jnp.where((carry == 2)[:, None], jnp.array([[0.0, 9.0]]), jnp.array([[9.0, 0.0]]))
            )
        )

    counting = Policy(lambda key: (), lambda n: jnp.full(n, 50), step, None)
    result = evaluate(envs.make(Coin(), 20), counting, (), key, num_episodes=60)
    assert set(np.unique(result.returns)) == {21.0, 54.0}


def test_evaluate_is_inlined_and_maps_over_params(key):
    env, policy = envs.make(Coin(), 4), constant(0.0, 0.0)
    scores = jax.jit(
        jax.vmap(lambda params: evaluate(env, policy, params, key, num_episodes=4).returns)
    )(jnp.array([[9.0, 0.0], [0.0, 9.0]]))
    np.testing.assert_array_equal(scores[1], 10 * scores[0])


def test_an_evaluation_must_end(key):
    class Endless:  # knows no limit, and does not say what a truncation is
        reset_env, step_env, action_space, _obs = (
            Coin.reset_env,
            Coin.step_env,
            Coin.action_space,
            Coin._obs,
        )

    policy = constant(0.0, 0.0)
    with pytest.warns(UserWarning, match="no time limit"):
        env = envs.make(Endless(), 2)
    with pytest.raises(UsageError, match=r"has no time limit.*max_steps=1000"):
        evaluate(env, policy, policy.init(key), key, num_episodes=2)
    limited = envs.make(Endless(), 2, max_steps=3)
    assert np.all(evaluate(limited, policy, policy.init(key), key, num_episodes=8).lengths <= 3)


class Late(Coin):
    """Its long episodes go on for `late` steps beyond the limit that it states."""

    def __init__(self, late):
        self.late = late

    def is_truncated(self, state, params):
        return state["time"] >= params.max_steps_in_episode + self.late


def test_an_episode_beyond_the_stated_limit_is_finished(key):
    """One step later than stated: 1 + ... + 9 = 45; it was a 0 of length 0."""
    env, policy = envs.make(Late(1), 20), constant(1.0, 0.0)
    assert env.max_steps == 8
    result = evaluate(env, policy, policy.init(key), key, num_episodes=60)
    assert set(np.unique(result.returns)) == {3.0, 45.0}
    assert set(np.unique(result.lengths)) == {2, 9}


def test_an_unfinished_episode_is_nan_and_not_a_zero(key):
    """The long ones never end; the first episodes of the environments show which they are."""
    env, policy = envs.make(Late(1000), 20), constant(1.0, 0.0)
    result = evaluate(env, policy, policy.init(key), key, num_episodes=20)
    short = env.reset(jax.random.split(key)[0])[0]["short"]
    np.testing.assert_array_equal(result.returns, np.where(short, 3.0, np.nan))
    discounted = np.where(short, 1 + 2 * 0.99, np.nan)
    np.testing.assert_allclose(result.discounted_returns, discounted, rtol=1e-6)
    np.testing.assert_array_equal(result.lengths, np.where(short, 2, 0))


def test_a_return_that_is_not_finite_is_of_its_own_episode_alone(key):
    """nan is paid in short episodes; the long ones after them in the same environment are clean."""

    class Broken(Coin):
        def step_env(self, key, state, action, params):
            obs, state, reward, done, info = super().step_env(key, state, action, params)
            return obs, state, jnp.where(state["short"], jnp.nan, reward), done, info

    env, policy = envs.make(Broken(), 20), constant(1.0, 0.0)
    result = evaluate(env, policy, policy.init(key), key, num_episodes=100)
    np.testing.assert_array_equal(result.returns, np.where(result.lengths == 2, np.nan, 36.0))


def test_params_of_nan_have_no_score(key):
    """They took the first action and scored like a policy that means to; other lanes are theirs."""
    env, policy = envs.make(Coin(), 4), constant(1.0, 0.0)
    params = policy.init(key)
    lanes = jax.tree.map(lambda x: jnp.stack([x, x.at[..., -1].set(jnp.nan)]), params)
    result = jax.vmap(lambda p: evaluate(env, policy, p, key, num_episodes=4))(lanes)
    for returns in (result.returns, result.discounted_returns):
        assert np.isfinite(returns[0]).all() and np.isnan(returns[1]).all()
    np.testing.assert_array_equal(result.lengths[0], result.lengths[1])


# --- statistics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 8, 40])
def test_iqm_is_scipys_trimmed_mean(size):
    x = np.random.default_rng(size).normal(size=size)
    assert iqm(x) == pytest.approx(scipy.stats.trim_mean(x, 0.25), rel=1e-12)
    assert iqm(x.reshape(2, -1)) == pytest.approx(iqm(x))


def test_iqm_has_fractional_edges():
    """Five values: a quarter is 1.25 of them.

    The middle 2.5 are 3/4 of the second, the third, 3/4 of the fourth.
    """
    assert iqm([0, 4, 100, 1, 2]) == pytest.approx((0.75 * 1 + 2 + 0.75 * 4) / 2.5)
    assert iqm([7.0]) == 7.0 and iqm([1.0, 3.0]) == 2.0


def test_iqm_of_what_is_not_a_number():
    assert np.isnan(iqm([1.0, 2.0, 3.0, np.nan])) and iqm([-np.inf, 1.0, 3.0, np.inf]) == 2.0
    assert np.isnan(interval([1.0, 2.0, np.nan])).any()
    with pytest.raises(UsageError, match="at least one value"):
        iqm([])


def test_interval_covers_about_as_often_as_it_says():
    """200 samples of 30: the true mean lies within its 90 % interval in 90 % of them or so."""
    rng = np.random.default_rng(0)
    limits = np.array(
        [
            interval(rng.normal(3, 2, 30), statistic=np.mean, level=0.9, samples=200)
            for _ in range(200)
        ]
    )
    assert 0.80 < np.mean((limits[:, 0] < 3) & (3 < limits[:, 1])) < 0.96
    width = np.mean(limits[:, 1] - limits[:, 0])
    assert width == pytest.approx(2 * 1.645 * 2 / np.sqrt(30), rel=0.1)
    sample = rng.normal(size=30)
    assert (
        interval(sample, level=0.5)[1] - interval(sample, level=0.5)[0]
        < interval(sample)[1] - interval(sample)[0]
    )
    assert interval(sample) == interval(sample) != interval(sample, seed=1)


def test_interval_draws_within_each_task():
    """Two tasks far apart, the same within: nothing is left to chance. Pooled it were wide."""
    scores = np.array([[0.0] * 8, [10.0] * 8])
    assert interval(scores, statistic=np.mean) == (5.0, 5.0)
    low, high = interval(scores.ravel(), statistic=np.mean)
    assert low < 4 < 6 < high
