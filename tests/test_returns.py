"""Returns, running moments and normalised rewards: numbers by hand, rlax, numpy and plain Python loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from jaxkd import moments, returns, rewards
from jaxkd.base import Batch, Context, Outputs, Returns

CONTEXT = Context(jnp.int32(2), jnp.float32(0), (), jax.random.key(0))
RNG = np.random.default_rng(2)
T, B = 6, 3
REWARD, NEXT = RNG.normal(size=(2, T, B)).astype(np.float32)
VALUE = RNG.normal(size=(T + 1, B)).astype(np.float32)
TERMINATED = np.zeros((T, B), np.float32)
TERMINATED[1, 0] = TERMINATED[4, 1] = 1
TRUNCATED = np.zeros((T, B), np.float32)
TRUNCATED[3, 0] = TRUNCATED[2, 1] = 1
# As stage 1 hands it over: the next row's value, except where the time limit cut.
FOLLOWING = np.where(TRUNCATED > 0, NEXT, VALUE[1:])


def batch(terminated=TERMINATED, truncated=TRUNCATED) -> Batch:
    none = dict.fromkeys(("obs", "next_obs", "action", "reward", "reset", "carry", "acting", "teacher"), ())
    return Batch(**none, terminated=jnp.asarray(terminated), truncated=jnp.asarray(truncated))


def evaluate(made: Returns, reward=REWARD, value=VALUE, following=FOLLOWING, data=None):
    args = (jnp.asarray(x, jnp.float32) for x in (reward, value, following))
    return jax.jit(lambda *args: made.evaluate(*args, data or batch(), CONTEXT))(*args)


def column(*numbers):
    return np.array(numbers, np.float32)[:, None]


# --- gae ------------------------------------------------------------------------------------------------------------


def test_gae_by_hand():
    """gamma = lambda = 1/2, a truncation at t = 1, a termination at t = 3, value 10 t; the true successor of t = 1 is worth 100.

    d_3 = 1 - 30 = -29 (terminated: no bootstrap); d_4 = 1 + 25 - 40 = -14; d_2 = 1 + 15 - 20 = -4; d_1 = 1 + 50 - 10 = 41;
    d_0 = 1 + 5 - 0 = 6. A_4 = -14; A_3 = -29 (no trace); A_2 = -4 + A_3 / 4 = -11.25; A_1 = 41 (no trace); A_0 = 6 + A_1 / 4 = 16.25.
    """
    value, following = column(0, 10, 20, 30, 40, 50), column(10, 100, 30, 999, 50)
    data = batch(column(0, 0, 0, 1, 0), column(0, 1, 0, 0, 0))
    advantage, target = evaluate(returns.gae(0.5, 0.5), np.ones((5, 1)), value, following, data)
    np.testing.assert_allclose(advantage, column(16.25, 41, -11.25, -29, -14), rtol=1e-6)
    np.testing.assert_allclose(target, column(16.25, 51, 8.75, 1, 26), rtol=1e-6)


def test_gae_as_rlax():
    """rlax knows no truncation: with terminations alone both agree, and so do both without episodes when nothing terminates."""
    data = batch(truncated=0 * TRUNCATED)
    ours = evaluate(returns.gae(0.9, 0.8), following=VALUE[1:], data=data)[0]
    discount = 0.9 * (1 - TERMINATED)
    for env in range(B):
        theirs = rlax.truncated_generalized_advantage_estimation(REWARD[:, env], discount[:, env], 0.8, VALUE[:, env])
        np.testing.assert_allclose(ours[:, env], theirs, rtol=1e-5, atol=1e-6)


def test_lambda_zero_is_the_td_error():
    advantage, target = evaluate(returns.gae(0.9, 0.0))
    np.testing.assert_allclose(target, REWARD + 0.9 * (1 - TERMINATED) * FOLLOWING, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(advantage, target - VALUE[:-1], rtol=1e-4, atol=1e-6)


def test_lambda_one_is_the_discounted_return():
    """Rewards until the episode ends, then nothing (terminated) or the discounted value of what was cut off."""
    target = np.zeros((T, B))
    for env in range(B):
        for start in range(T):
            scale = 1.0
            for t in range(start, T):
                target[start, env] += scale * REWARD[t, env]
                scale *= 0.9
                if TERMINATED[t, env]:
                    break
                if TRUNCATED[t, env] or t == T - 1:
                    target[start, env] += scale * FOLLOWING[t, env]
                    break
    ours = evaluate(returns.gae(0.9, 1.0))
    np.testing.assert_allclose(ours[1], target, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours[0], target - VALUE[:-1], rtol=1e-4, atol=1e-5)


def test_without_episodes_nothing_cuts():
    """The next row's value, through every reset: the ends and the true successors are not even read."""
    ours = evaluate(returns.gae(0.9, 0.8, episodic=False), following=np.full((T, B), np.nan))
    running, expected = np.zeros(B), np.zeros((T, B))
    for t in reversed(range(T)):
        running = REWARD[t] + 0.9 * VALUE[t + 1] - VALUE[t] + 0.9 * 0.8 * running
        expected[t] = running
    np.testing.assert_allclose(ours[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours[1], expected + VALUE[:-1], rtol=1e-5, atol=1e-6)
    assert np.abs(ours[0] - evaluate(returns.gae(0.9, 0.8))[0]).max() > 0.1


@pytest.mark.parametrize("coef", [3.0, lambda update: 1.5 * update], ids=["number", "schedule"])
def test_scale_scales_the_advantage_alone(coef):
    plain, scaled = evaluate(returns.gae()), evaluate(returns.scale(coef, returns.gae()))
    np.testing.assert_allclose(scaled[0], 3 * plain[0], rtol=1e-6)
    np.testing.assert_array_equal(scaled[1], plain[1])
    weighted = returns.scale(coef, Returns(lambda reward, *_: (reward, reward, 0 * reward), fresh=True))
    assert weighted.fresh and len(evaluate(weighted)) == 3
    np.testing.assert_array_equal(evaluate(weighted)[2], 0)


def test_gamma_and_lambda_may_be_traced():
    def target(gamma, lambda_):
        return returns.gae(gamma, lambda_).evaluate(jnp.asarray(REWARD), jnp.asarray(VALUE), jnp.asarray(FOLLOWING), batch(), CONTEXT)[1]

    grid = jax.jit(jax.vmap(target))(jnp.array([0.9, 0.5]), jnp.array([0.8, 1.0]))
    np.testing.assert_allclose(grid[0], evaluate(returns.gae(0.9, 0.8))[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grid[1], evaluate(returns.gae(0.5, 1.0))[1], rtol=1e-5, atol=1e-6)


# --- moments --------------------------------------------------------------------------------------------------------


def test_moments_of_all_batches_together():
    """Unequal batches with far-away means, a pytree: as numpy on everything that was seen."""
    batches = [{"a": RNG.normal(loc, 2, (t, 4, 3)), "b": RNG.normal(size=(t, 4))} for t, loc in ((2, 0), (5, 100), (1, -7))]
    running = moments.empty({"a": jnp.zeros(3), "b": jnp.zeros((), jnp.int32)})
    np.testing.assert_array_equal(moments.standardise(running, {"a": jnp.ones((2, 3)), "b": jnp.ones(2)}, 10.0)["a"], 1)
    update = jax.jit(moments.update)
    for samples in batches:
        running = update(running, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), samples))
    assert running.count == 32
    for name in ("a", "b"):
        everything = np.concatenate([samples[name].reshape(-1, *samples[name].shape[2:]) for samples in batches])
        np.testing.assert_allclose(running.mean[name], everything.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(running.var[name], everything.var(0), rtol=1e-4)


def test_standardise_by_hand():
    seen = moments.Moments(jnp.float32(10), jnp.array([1.0, 2.0]), jnp.array([4.0, 0.25]))
    np.testing.assert_allclose(moments.standardise(seen, jnp.array([[3.0, 2.5], [1.0, 99.0]]), 5.0), [[1, 1], [0, 5]], rtol=1e-5)
    np.testing.assert_allclose(moments.standardise(seen, jnp.array([-99.0, 2]), 5.0), [-5, 0], rtol=1e-5)


# --- rewards.normalise ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("episodic", [True, False])
def test_normalise_over_two_rollouts(episodic):
    """R_t = gamma R_{t-1} + r_t forward in time, 0 at the start of an episode, carried from rollout to rollout."""
    transform = rewards.normalise(0.9, episodic=episodic)
    state = transform.init(jax.random.key(0), (Outputs(()), batch()._replace(reward=jnp.zeros((T, B)))))
    update = jax.jit(lambda reward, state, data: transform.update(reward, state, data, CONTEXT))
    running, seen = np.zeros(B), []
    for rollout in range(2):
        reward = REWARD * (1 + rollout)
        for t in range(T):
            running = running + reward[t]
            seen.append(running)
            decay = np.where(TERMINATED[t] + TRUNCATED[t] > 0, 0.0, 0.9) if episodic else 0.9
            running = running * decay
        paid, state = update(jnp.asarray(reward), state, batch())
        np.testing.assert_allclose(paid, reward / np.std(seen), rtol=1e-4)
    np.testing.assert_allclose(state["actors"], running, rtol=1e-5)
    assert state["moments"].count == 2 * T * B


def test_normalise_by_hand():
    """R = 2, 3 for gamma = 1/2: variance 1/4, so rewards double; the mean stays in. Then R = 4 + 1.5; an end empties it."""
    transform, reward = rewards.normalise(0.5), column(2, 2, 4)
    state = transform.init(jax.random.key(0), (Outputs(()), batch()._replace(reward=jnp.zeros((3, 1)))))
    paid, state = transform.update(jnp.asarray(reward[:2]), state, batch(column(0, 0), column(0, 0)), CONTEXT)
    np.testing.assert_allclose(paid, 4, rtol=1e-5)
    np.testing.assert_allclose(state["actors"], 1.5)
    paid, state = transform.update(jnp.asarray(reward[2:]), state, batch(column(1), column(0)), CONTEXT)
    np.testing.assert_allclose(paid, 4 / np.std([2, 3, 5.5]), rtol=1e-5)
    np.testing.assert_allclose(state["actors"], 0)
