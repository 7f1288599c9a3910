"""Returns, groups of episodes, running moments and normalised rewards: numbers by hand, rlax, numpy
and plain Python loops.
"""

from functools import partial
from typing import NamedTuple

import batches
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rlax

from jaxkd import distill, envs, losses, moments, returns, rewards, run
from jaxkd.base import Batch, Context, Discrete, Memory, Outputs, Policy, Returns, UsageError
from jaxkd.distributions import Categorical

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


def batch(terminated=TERMINATED, truncated=TRUNCATED, **fields) -> Batch:
    ends = dict(terminated=jnp.asarray(terminated), truncated=jnp.asarray(truncated))
    return batches.batch(terminated.shape, **ends, **fields)


def evaluate(made: Returns, reward=REWARD, value=VALUE, following=FOLLOWING, data=None):
    args = (jnp.asarray(x, jnp.float32) for x in (reward, value, following))
    return jax.jit(lambda *args: made.evaluate(*args, data or batch(), CONTEXT))(*args)


def column(*numbers):
    return np.array(numbers, np.float32)[:, None]


# --- gae -----------------------------------------------------------------------------------------


def test_gae_by_hand():
    """gamma = lambda = 1/2, a truncation at t = 1, a termination at t = 3, value 10 t; the true
    successor of t = 1 is worth 100.

    d_3 = 1 - 30 = -29 (terminated: no bootstrap); d_4 = 1 + 25 - 40 = -14; d_2 = 1 + 15 - 20 = -4;
    d_1 = 1 + 50 - 10 = 41; d_0 = 1 + 5 - 0 = 6. A_4 = -14; A_3 = -29 (no trace); A_2 = -4 + A_3 / 4
    = -11.25; A_1 = 41 (no trace); A_0 = 6 + A_1 / 4 = 16.25.
    """
    value, following = column(0, 10, 20, 30, 40, 50), column(10, 100, 30, 999, 50)
    data = batch(column(0, 0, 0, 1, 0), column(0, 1, 0, 0, 0))
    advantage, target = evaluate(returns.gae(0.5, 0.5), np.ones((5, 1)), value, following, data)
    np.testing.assert_allclose(advantage, column(16.25, 41, -11.25, -29, -14), rtol=1e-6)
    np.testing.assert_allclose(target, column(16.25, 51, 8.75, 1, 26), rtol=1e-6)


def test_gae_as_rlax():
    """rlax knows no truncation: with terminations alone both agree, and so do both without episodes
    when nothing terminates.
    """
    data = batch(truncated=0 * TRUNCATED)
    ours = evaluate(returns.gae(0.9, 0.8), following=VALUE[1:], data=data)[0]
    discount = 0.9 * (1 - TERMINATED)
    for env in range(B):
        theirs = rlax.truncated_generalized_advantage_estimation(
            REWARD[:, env], discount[:, env], 0.8, VALUE[:, env]
        )
        np.testing.assert_allclose(ours[:, env], theirs, rtol=1e-5, atol=1e-6)


def test_lambda_zero_is_the_td_error():
    advantage, target = evaluate(returns.gae(0.9, 0.0))
    np.testing.assert_allclose(
        target, REWARD + 0.9 * (1 - TERMINATED) * FOLLOWING, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(advantage, target - VALUE[:-1], rtol=1e-4, atol=1e-6)


def test_lambda_one_is_the_discounted_return():
    """Rewards until the episode ends, then nothing (terminated) or the discounted value of what was
    cut off.
    """
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
    """The next row's value, through every reset: the ends and the true successors are not even
    read.
    """
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
    weighted = returns.scale(
        coef, Returns(lambda reward, *_: (reward, reward, 0 * reward), fresh=True)
    )
    assert weighted.fresh and len(evaluate(weighted)) == 3
    np.testing.assert_array_equal(evaluate(weighted)[2], 0)


def test_gamma_and_lambda_may_be_traced():
    def target(gamma, lambda_):
        return returns.gae(gamma, lambda_).evaluate(
            jnp.asarray(REWARD), jnp.asarray(VALUE), jnp.asarray(FOLLOWING), batch(), CONTEXT
        )[1]

    grid = jax.jit(jax.vmap(target))(jnp.array([0.9, 0.5]), jnp.array([0.8, 1.0]))
    np.testing.assert_allclose(grid[0], evaluate(returns.gae(0.9, 0.8))[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grid[1], evaluate(returns.gae(0.5, 1.0))[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("gamma", "lambda_"), [(0.9, 0.65), (0.99, 0.0), (0.9, 1.0)])
def test_q_lambda_as_rlax(gamma, lambda_):
    """With V = max_a Q the target is the lambda return of one trajectory; a termination is a
    discount of 0.
    """
    data = batch(truncated=0 * TRUNCATED)
    ours = evaluate(returns.q_lambda(gamma, lambda_), following=VALUE[1:], data=data)[1]
    for env in range(B):
        theirs = rlax.lambda_returns(
            REWARD[:, env], gamma * (1 - TERMINATED[:, env]), VALUE[1:, env], lambda_
        )
        np.testing.assert_allclose(ours[:, env], theirs, rtol=1e-5, atol=1e-5)


def test_q_lambda_by_hand():
    """gamma = lambda = 1/2, max Q = 10 t, a truncation at t = 1 whose true successor is worth 100,
    a termination at t = 2.

    G_3 = 1 + 40 / 2 = 21; G_2 = 1; G_1 = 1 + 100 / 2 = 51; G_0 = 1 + (G_1 / 2 + 10 / 2) / 2 =
    16.25.
    """
    value, following = column(0, 10, 20, 30, 40), column(10, 100, 999, 40)
    data = batch(column(0, 0, 1, 0), column(0, 1, 0, 0))
    _, target = evaluate(returns.q_lambda(0.5, 0.5), np.ones((4, 1)), value, following, data)
    np.testing.assert_allclose(target, column(16.25, 51, 1, 21), rtol=1e-6)


def test_watkins_q_lambda_as_rlax():
    """Retrace with the coefficient lambda where the action is the greedy one, else 0, and a greedy
    target policy; Peng's where every action is greedy.
    """
    q = RNG.normal(size=(T + 1, B, 3)).astype(np.float32)
    action = RNG.integers(3, size=(T + 1, B))
    action[2:4] = q.argmax(-1)[2:4]
    value, acting = q.max(-1), Outputs(Categorical(jnp.asarray(q[:-1])))
    data = batch(truncated=0 * TRUNCATED, acting=acting, action=jnp.asarray(action[:-1]))
    made = returns.q_lambda(0.9, 0.8, watkins=True)
    target = evaluate(made, value=value, following=value[1:], data=data)[1]
    greedy = (q.argmax(-1) == action).astype(np.float32)
    assert 0 < greedy[1:T].sum() < greedy[1:T].size
    for env in range(B):
        theirs = rlax.general_off_policy_returns_from_action_values(
            q[1:, env],
            action[1:, env],
            REWARD[:, env],
            0.9 * (1 - TERMINATED[:, env]),
            0.8 * greedy[1:, env],
            jax.nn.one_hot(q[1:, env].argmax(-1), 3),
        )
        np.testing.assert_allclose(target[:, env], theirs, rtol=1e-5, atol=1e-5)
    best = data._replace(action=jnp.asarray(q[:-1].argmax(-1)))
    all_greedy = evaluate(made, value=value, following=value[1:], data=best)
    peng = evaluate(returns.q_lambda(0.9, 0.8), value=value, following=value[1:], data=best)
    np.testing.assert_allclose(all_greedy[1], peng[1], rtol=1e-6)


def test_monte_carlo_is_gae_of_lambda_one():
    for ours, theirs in zip(
        evaluate(returns.monte_carlo(0.9)), evaluate(returns.gae(0.9, 1.0)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


# --- groups --------------------------------------------------------------------------------------


def ended(*columns) -> Batch:
    """A rollout from a reset of each environment; a string an environment: "t" a termination, "c" a
    cut, "." goes on.
    """
    rows = np.array([list(column) for column in columns]).T
    done = (rows != ".").astype(np.float32)
    reset = np.concatenate([np.ones_like(done[:1]), done[:-1]])
    return batch((rows == "t").astype(np.float32), (rows == "c").astype(np.float32))._replace(
        reset=jnp.asarray(reset)
    )


def compare(made, reward, data):
    return jax.jit(made.evaluate)(jnp.asarray(reward, jnp.float32), (), (), data, CONTEXT)


def test_groups_by_hand():
    """Two groups of two, six steps; what follows a first episode does not count.

    Group 0: returns 3 (three steps) and 1 (two, cut): mean 2, deviation 1, A = +-1 / (1 + 1e-6).
    Group 1: returns 5 (one step), and 5 for one that outlives the rollout: equal.
    """
    data = ended("..tt..", ".c.t..", "tt....", "......")
    reward = np.array(
        [[1, 2, 0, 9, 9, 9], [1, 0, 8, 8, 8, 8], [5, 7, 7, 7, 7, 7], [0, 0, 5, 1, -1, 0]],
        np.float32,
    ).T
    advantage, target, weight = compare(returns.group_relative(2), reward, data)
    one = 1 / (1 + 1e-6)
    third = 1 / 3
    np.testing.assert_allclose(
        weight.T, [[third] * 3 + [0] * 3, [0.5] * 2 + [0] * 4, [1] + [0] * 5, [1 / 6] * 6]
    )
    np.testing.assert_allclose(advantage[:, 0], [one] * 3 + [0] * 3, rtol=1e-5)
    np.testing.assert_allclose(advantage[:, 1], [-one] * 2 + [0] * 4, rtol=1e-5)
    np.testing.assert_array_equal(advantage[:, 2:], 0)
    np.testing.assert_allclose(target.T, [[2] * 6, [2] * 6, [5] * 6, [5] * 6], rtol=1e-6)


VARIANTS = [  # standardise, leave_one_out, rows
    (True, False, "mean"),
    (False, False, "constant"),
    (False, True, "sum"),
    (True, True, "all"),
]


def test_groups_are_a_python_loop():
    """Episodes of random lengths in groups of three, all variants, by a loop over environments: the
    coefficient of every row's log-probability, A w / sum w.
    """
    length, size, rng = 24, 3, np.random.default_rng(5)
    ends = rng.choice(list("......tc"), (length, 6))
    ends[:, 5] = "."  # nothing ends
    data, reward = ended(*ends.T), rng.normal(size=(length, 6)).astype(np.float32)
    last = [next((t + 1 for t in range(length) if e[t] != "."), length) for e in ends.T]
    earned = np.array([reward[: last[i], i].sum() for i in range(6)])
    for standardise, leave_one_out, rows in VARIANTS:
        expected, mean = np.zeros((length, 6)), np.zeros(6)
        for i in range(6):
            group = earned[i // size * size : (i // size + 1) * size]
            gain, mean[i] = earned[i] - group.mean(), group.mean()
            if leave_one_out:
                gain = earned[i] - (group.sum() - earned[i]) / (size - 1)
            gain = gain / (np.std(group) + 1e-6) if standardise else gain
            # TRL's loss types: a mean over rows, their sum, their sum over a constant, bnpo
            divisor = {"mean": last[i] * 6, "sum": 6, "constant": length * 6, "all": sum(last)}
            expected[: last[i], i] = gain / divisor[rows]
        made = returns.group_relative(
            size, standardise=standardise, leave_one_out=leave_one_out, rows=rows
        )
        advantage, target, weight = compare(made, reward, data)
        np.testing.assert_allclose(
            advantage * weight / weight.sum(), expected, rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(target, np.broadcast_to(mean, (length, 6)), rtol=1e-4, atol=1e-5)
        assert (np.asarray(weight) > 0).sum() == sum(last) < 0.8 * weight.size


def test_rows_of_an_episode_as_trl():
    """E1: lengths 1 and 3, R = (1, 0): RLOO's coefficients are .5 and -.5, also in a minibatch of
    other lengths; Dr. GRPO's divisor does not depend on them.
    """
    rloo = returns.group_relative(2, standardise=False, leave_one_out=True, rows="sum")
    dr_grpo = returns.group_relative(2, standardise=False, rows="constant")
    for columns in (("t..", "..t"), ("t..", ".t."), ("..t", "t..")):
        reward = np.array([[1, 0, 0], [0, 0, 0]], np.float32).T
        for made, one in ((rloo, 0.5), (dr_grpo, 0.5 / (2 * 3))):
            advantage, _, weight = compare(made, reward, ended(*columns))
            found = advantage * weight / weight.sum()
            for i, sign in enumerate((1, -1)):
                rows = columns[i].index("t") + 1
                np.testing.assert_allclose(found[:rows, i], sign * one, rtol=1e-6)
                np.testing.assert_array_equal(found[rows:, i], 0)
    with pytest.raises(UsageError, match="rows must be one of 'mean', 'sum'.*got 'median'"):
        returns.group_relative(2, rows="median")


def test_groups_do_not_favour_short_episodes():
    """E2: one state, p(continue) = .8, limit 8, a reward a step and one at the limit: the gradient
    of E R in closed form. Later episodes that fit into the rollout had another one, even another
    sign.
    """
    p, limit, number, rng = 0.8, 8, 2**15, np.random.default_rng(0)
    goes_on = rng.random((limit, number)) < p
    clock, ends = np.zeros(number, int), np.zeros_like(goes_on)
    at_limit = np.zeros_like(goes_on)
    for t in range(limit):
        clock += 1
        at_limit[t] = clock == limit
        ends[t] = ~goes_on[t] | at_limit[t]
        clock[ends[t]] = 0
    data = ended(*np.where(ends, "t", ".").T)
    made = returns.group_relative(8, standardise=False, leave_one_out=True, rows="sum")
    episodes = [(n, False, p ** (n - 1) * (1 - p)) for n in range(1, limit + 1)]
    episodes += [(limit, True, p**limit)]  # steps, whether the last went on, probability
    for step, bonus in ((1.0, 0.0), (-1.0, 20.0), (-1.0, 0.0)):
        advantage, _, weight = compare(made, step + bonus * (at_limit & goes_on), data)
        # of the logit of going on: d log pi = 1 - p where it went on, else -p
        by_env = (np.where(goes_on, 1 - p, -p) * np.asarray(advantage * weight)).sum(0)
        exact = sum(
            chance * (n * (1 - p) - (not full)) * (step * n + bonus * full)
            for n, full, chance in episodes
        )
        error = by_env.std() / np.sqrt(number)
        assert abs(by_env.mean() - exact) < 4 * error < 0.2 * abs(exact)


@pytest.mark.parametrize(
    "one, other",
    [
        ([1000, 0.1, -1000], [0.1, 1000, -1000]),
        ([0.1] * 200, [0.3] * 66 + [0.2] + [0] * 133),
        ([0.7] * 1000, [7.0] * 100 + [0] * 900),
        ([0.1, 0, 0, 0], [0, 0, 0, 0.1]),
    ],
    ids=["order", "steps", "thousand", "place"],
)
def test_equal_returns_give_no_advantage(one, other):
    """A8: exactly 0 whatever was rounded; the residue was divided by itself."""
    data = ended(*["." * (len(one) - 1) + "t"] * 3)
    reward = np.array([one, other, one], np.float32).T
    for standardise, leave_one_out, rows in VARIANTS:
        made = returns.group_relative(
            3, standardise=standardise, leave_one_out=leave_one_out, rows=rows
        )
        np.testing.assert_array_equal(compare(made, reward, data)[0], 0)


def test_small_differences_of_large_returns_are_kept():
    """1000 and 1000.01 differ beyond rounding: one part in a hundred thousand."""
    data = ended(".....t", ".....t")
    reward = np.array([[200] * 5 + [0], [200] * 5 + [0.01]], np.float32).T
    advantage = compare(returns.group_relative(2), reward, data)[0]
    np.testing.assert_allclose(advantage, [[-1, 1]] * 6, rtol=0.02)


def test_what_changes_when_rewards_are_scaled_and_shifted():
    """Equal lengths, so that r -> 3 r + 2 is R -> 3 R + const: GRPO stays, Dr. GRPO is three times
    as large, RLOO is Dr. GRPO times T G / (G - 1).
    """
    data, size = ended(*[".....t"] * 4), 4
    reward = RNG.normal(size=(6, 4)).astype(np.float32)
    grpo, dr_grpo = (
        returns.group_relative(size),
        returns.group_relative(size, standardise=False, rows="constant"),
    )
    rloo = returns.group_relative(size, standardise=False, leave_one_out=True, rows="sum")
    before, after = (compare(grpo, r, data)[0] for r in (reward, 3 * reward + 2))
    np.testing.assert_allclose(before, after, rtol=1e-4)
    np.testing.assert_allclose(np.std(before, axis=1), 1, rtol=1e-4)
    before, after = (compare(dr_grpo, r, data)[0] for r in (reward, 3 * reward + 2))
    np.testing.assert_allclose(3 * before, after, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        compare(rloo, reward, data)[0], before * 6 * size / (size - 1), rtol=1e-5, atol=1e-5
    )
    totals = reward.sum(0)
    np.testing.assert_allclose(
        compare(rloo, reward, data)[0][0, 0], 6 * (totals[0] - totals[1:].mean()), rtol=1e-4
    )


class Params(NamedTuple):
    max_steps_in_episode: int = 3


class Pays:
    """Pays what was drawn at the start for action 1, nothing for 0; a step ends the episode with
    probability 0.2.
    """

    name = "Pays"

    def __init__(self, limit=True):
        self.default_params = Params() if limit else ()

    def reset_env(self, key, params):
        state = {"time": jnp.int32(0), "luck": jax.random.normal(key)}
        return jnp.stack([state["luck"], jnp.float32(1)]), state

    def step_env(self, key, state, action, params):
        state = state | {"time": state["time"] + 1}
        return (
            jnp.stack([state["luck"], jnp.float32(1)]),
            state,
            state["luck"] * action,
            jax.random.uniform(key) < 0.2,
            {},
        )

    def is_truncated(self, state, params):
        return state["time"] >= params.max_steps_in_episode if params else jnp.zeros((), bool)

    def action_space(self, params):
        return Discrete(2)


def headless(params, carry, obs, reset):
    return carry, Outputs(Categorical(obs @ params))


HEADLESS = Policy(lambda key: jax.random.normal(key, (2, 2)), lambda n: (), headless, headless)
RECORD = Memory(
    init=lambda spec: (), add=lambda buffer, batch: batch, sample=lambda key, buffer, batch: batch
)
WHOLE = partial(
    distill, losses={"policy": losses.ppo_clip(normalise=False)}, unroll_length=6, num_minibatches=1
)


def reinforce(params, data, weight, advantage):
    log_prob = headless(params, (), data.obs, ())[1].policy.log_prob(data.action)
    return jnp.sum(weight * advantage * log_prob) / weight.sum()


def test_on_policy_the_gradient_is_reinforce_with_the_groups_mean(key):
    """One step of SGD at ratio 1 against the gradient of sum w A log pi / sum w over the first
    episodes, A from a loop; the student has no value head.

    Twice: every update begins with a reset, and the successors' values are not computed.
    """
    env = envs.make(Pays(), 8, group_size=4)
    made = returns.group_relative(4, standardise=False)
    algorithm = WHOLE(env, HEADLESS, returns=made, memory=RECORD, optimizer=optax.sgd(1.0))
    state = jax.jit(algorithm.init)(key)
    step = jax.jit(algorithm.step)
    for _ in range(2):
        before = state.params
        state, _ = step(state._replace(memory=()))
        data = state.memory
        np.testing.assert_array_equal(data.reset[0], 1)
        done = np.asarray(data.terminated + data.truncated)
        advantage, weight = np.zeros((6, 8)), np.zeros((6, 8))
        lengths = [np.flatnonzero(done[:, i])[0] + 1 for i in range(8)]
        totals = np.array([np.sum(data.reward[: lengths[i], i]) for i in range(8)])
        for i in range(8):
            np.testing.assert_array_equal(data.obs[0, i], data.obs[0, i // 4 * 4])
            advantage[: lengths[i], i] = totals[i] - totals[i // 4 * 4 : i // 4 * 4 + 4].mean()
            weight[: lengths[i], i] = 1 / lengths[i]
        expected = jax.grad(reinforce)(before, data, weight, advantage)
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(state.params - before, expected, rtol=1e-4, atol=1e-5)
        assert data.acting_next.value == ()


def test_a_student_without_a_value_head_computes_no_successors():
    """In the traced update the network sees T * B rows, never the [K + 1, B] after the rollout."""
    env, seen = envs.make(Pays(), 8, group_size=4), []

    def noted(params, carry, obs, reset):
        seen.append(obs.shape)
        return headless(params, carry, obs, reset)

    def shapes(made, student):
        algorithm = WHOLE(env, student, returns=made)
        state = jax.eval_shape(algorithm.init, jax.random.key(0))
        seen.clear()
        jax.eval_shape(algorithm.step, state)
        return set(seen)

    alone = Policy(HEADLESS.init, HEADLESS.initial_carry, noted, noted)
    valued = lambda *args: (args[1], noted(*args)[1]._replace(value=args[2][..., 0]))
    assert shapes(returns.group_relative(4), alone) == {(8, 2), (1, 48, 2)}
    assert (3 * 8, 2) in shapes(returns.gae(), alone._replace(step=valued, unroll=valued))


@pytest.mark.parametrize(
    ("make", "made", "keywords", "parts"),
    [
        (
            partial(envs.make, Pays(), 8),
            returns.group_relative(4),
            {},
            ["groups of 4", "'Pays' has group_size = 1", "group_size=4"],
        ),
        (
            partial(envs.make, Pays(), 8, group_size=2),
            returns.group_relative(4),
            {},
            ["groups of 4", "has group_size = 2"],
        ),
        (
            partial(envs.make, Pays(), 8, group_size=4),
            returns.scale(2.0, returns.group_relative(4)),
            {"unroll_length": 2},
            ["unroll_length = 2", "the 3 steps", "unroll_length=3", "max_steps=2"],
        ),
        (
            partial(envs.make, Pays(limit=False), 8, group_size=4),
            returns.group_relative(4),
            {},
            ["no time limit", "max_steps=6"],
        ),
        (partial(envs.make, Pays(), 8), returns.gae(), {}, ["loss 'policy'", "no value head"]),
    ],
    ids=["no groups", "other groups", "short rollout", "no limit", "gae without a head"],
)
def test_group_mistakes(make, made, keywords, parts):
    with pytest.raises(UsageError) as raised:
        WHOLE(make(), HEADLESS, returns=made, **keywords)
    for part in parts:
        assert part in str(raised.value), str(raised.value)


def test_a_group_of_one_is_refused():
    with pytest.raises(UsageError, match="at least 2, got 1"):
        returns.group_relative(1)
    with pytest.raises(UsageError, match="positive int"):
        returns.group_relative(4.0)  # pyright: ignore[reportArgumentType]


def test_groups_teach(key):
    """GRPO on `Pays`: action 1 where luck is above 0, else 0. A student that knows it earns about E
    max(luck, 0) a step.
    """
    env = envs.make(Pays(), 64, group_size=8)
    algorithm = WHOLE(env, HEADLESS, returns=returns.group_relative(8), optimizer=optax.adam(0.1))
    params = run(algorithm, key, 40)[0].params
    right = jax.nn.softmax(jnp.array([[1.0, 1], [-1, 1]]) @ params)[
        jnp.arange(2), jnp.array([1, 0])
    ]
    assert np.all(right > 0.95), right


# --- moments -------------------------------------------------------------------------------------


def test_moments_of_all_batches_together():
    """Unequal batches with far-away means, a pytree: as numpy on everything that was seen."""
    batches = [
        {"a": RNG.normal(loc, 2, (t, 4, 3)), "b": RNG.normal(size=(t, 4))}
        for t, loc in ((2, 0), (5, 100), (1, -7))
    ]
    running = moments.empty({"a": jnp.zeros(3), "b": jnp.zeros((), jnp.int32)})
    np.testing.assert_array_equal(
        moments.standardise(running, {"a": jnp.ones((2, 3)), "b": jnp.ones(2)}, 10.0)["a"], 1
    )
    update = jax.jit(moments.update)
    for samples in batches:
        running = update(running, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), samples))
    assert running.count == 32
    for name in ("a", "b"):
        everything = np.concatenate(
            [samples[name].reshape(-1, *samples[name].shape[2:]) for samples in batches]
        )
        np.testing.assert_allclose(running.mean[name], everything.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(running.var[name], everything.var(0), rtol=1e-4)


@pytest.mark.parametrize("constant", [1000.1, -0.3, 1e6 + 0.5])
def test_moments_of_a_constant_are_itself(constant):
    """A13: the float32 mean of 2048 times 1000.1 is 1000.11, and 1000.1 became -1."""
    samples, weight = jnp.full((32, 64), constant), jnp.ones((32, 64)).at[0, 0].set(0.0)
    spoilt = samples.at[0, 0].set(jnp.nan)
    for more in ((samples,), (spoilt, weight)):
        seen = moments.update(moments.update(moments.empty(jnp.zeros(())), *more), *more)
        assert seen.mean == jnp.float32(constant) and seen.var == 0
        np.testing.assert_array_equal(moments.standardise(seen, samples, 10.0), 0)


def test_moments_of_large_numbers_and_of_an_outlier():
    """As numpy in float64, also where the first sample lies far from all others, and where the
    variance times the count is beyond float32.
    """
    x = RNG.normal(size=(32, 64, 3)).astype(np.float32) * np.float32([1e-2, 1, 50]) + 1000
    x[0, 0] = 1e5
    seen = moments.update(moments.empty(jnp.zeros(3)), jnp.asarray(x))
    y = np.float64(x)
    np.testing.assert_allclose(seen.mean, y.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(seen.var, y.var((0, 1)), rtol=1e-5)
    huge = moments.update(moments.empty(jnp.zeros(3)), jnp.asarray(x * 1e13))
    huge = moments.update(huge._replace(count=jnp.float32(1e9)), jnp.asarray(x * 1e13))
    np.testing.assert_allclose(huge.var / np.float32(1e26), y.var((0, 1)), rtol=1e-5)


def test_standardise_by_hand():
    seen = moments.Moments(jnp.float32(10), jnp.array([1.0, 2.0]), jnp.array([4.0, 0.25]))
    np.testing.assert_allclose(
        moments.standardise(seen, jnp.array([[3.0, 2.5], [1.0, 99.0]]), 5.0),
        [[1, 1], [0, 5]],
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        moments.standardise(seen, jnp.array([-99.0, 2]), 5.0), [-5, 0], rtol=1e-5
    )


# --- rewards.normalise ---------------------------------------------------------------------------


@pytest.mark.parametrize("episodic", [True, False])
def test_normalise_over_two_rollouts(episodic):
    """R_t = gamma R_{t-1} + r_t forward in time, 0 at the start of an episode, carried from rollout
    to rollout.
    """
    transform = rewards.normalise(0.9, episodic=episodic)
    state = transform.init(
        jax.random.key(0), (Outputs(()), batch()._replace(reward=jnp.zeros((T, B))))
    )
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
    """R = 2, 3 for gamma = 1/2: variance 1/4, so rewards double; the mean stays in. Then R = 4 +
    1.5; an end empties it.
    """
    transform, reward = rewards.normalise(0.5), column(2, 2, 4)
    state = transform.init(
        jax.random.key(0), (Outputs(()), batch()._replace(reward=jnp.zeros((3, 1))))
    )
    paid, state = transform.update(
        jnp.asarray(reward[:2]), state, batch(column(0, 0), column(0, 0)), CONTEXT
    )
    np.testing.assert_allclose(paid, 4, rtol=1e-5)
    np.testing.assert_allclose(state["actors"], 1.5)
    paid, state = transform.update(
        jnp.asarray(reward[2:]), state, batch(column(1), column(0)), CONTEXT
    )
    np.testing.assert_allclose(paid, 4 / np.std([2, 3, 5.5]), rtol=1e-5)
    np.testing.assert_allclose(state["actors"], 0)


# --- rows that do not count -----------------------------------------------------------------------


def test_gae_through_a_row_that_is_not_the_learners():
    """gamma = lambda = 1/2; row 1 is another player's, and no loss has trained its value.

    A_3 = 4 + 20 - 30 = -6, G_3 = 24; A_2 = 3 + 15 - 20 - 6 / 4 = -3.5, G_2 = 16.5. What row 1 earns
    flows on: G_1 = 2 + (20 + 16.5) / 4 = 11.125, and G_0 = 1 + G_1 / 2 = 6.5625 without its value.
    """
    weight, nan = jnp.asarray(column(1, 0, 1, 1)), np.nan
    data = batch(column(0, 0, 0, 0), column(0, 0, 0, 0), weight=weight)
    value, following = column(10, nan, 20, 30, 40), column(nan, 20, 30, 40)
    args = column(1, 2, 3, 4), value, following, data
    advantage, target = evaluate(returns.gae(0.5, 0.5), *args)
    np.testing.assert_allclose(advantage, column(6.5625 - 10, 0, -3.5, -6), rtol=1e-6)
    np.testing.assert_allclose(target, column(6.5625, 11.125, 16.5, 24), rtol=1e-6)
    continuing = evaluate(returns.gae(0.5, 0.5, episodic=False), *args)
    np.testing.assert_allclose(continuing[0], advantage, rtol=1e-6)


def test_a_cut_behind_a_row_that_counts_bootstraps_whatever_comes_next():
    """Row 1 begins an episode with a prompt; row 0 was cut off and is worth its successor, 8."""
    data = batch(column(0, 0), column(1, 0), weight=jnp.asarray(column(1, 0)))
    args = column(1, 5), column(2, np.nan, 6), column(8, 6), data
    advantage, _ = evaluate(returns.gae(0.5, 0.5), *args)
    np.testing.assert_allclose(advantage, column(1 + 4 - 2, 0), rtol=1e-6)


@pytest.mark.parametrize("episodic", [True, False])
def test_where_every_row_counts_weights_change_nothing(episodic):
    made = returns.gae(0.9, 0.8, episodic=episodic)
    plain, weighted = evaluate(made), evaluate(made, data=batch(weight=jnp.ones((T, B))))
    for a, b in zip(plain, weighted, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6)


def test_groups_earn_in_every_row_and_learn_in_those_that_count():
    """R = 3 and 1: mean 2, deviation 1. The first episode has a prompt of one row: |o| = 2."""
    ends, reset = np.zeros((3, 2), np.float32), jnp.zeros((3, 2)).at[0].set(1.0)
    ends[2] = 1
    weight = jnp.ones((3, 2)).at[0, 0].set(0.0)
    data = batch(ends, 0 * ends, reset=reset, weight=weight)
    reward = jnp.array([[1.0, 0], [1, 0], [1, 1]])
    advantage, target, share = returns.group_relative(2).evaluate(reward, (), (), data, CONTEXT)
    np.testing.assert_allclose(advantage, [[0, -1], [1, -1], [1, -1]], rtol=1e-5)
    np.testing.assert_allclose(share, [[0, 1 / 3], [1 / 2, 1 / 3], [1 / 2, 1 / 3]], rtol=1e-6)
    np.testing.assert_array_equal(target, jnp.full((3, 2), 2.0))
    # Weights of 1/2 halve |o|; the learner multiplies by them, so they are not in the share.
    half = returns.group_relative(2).evaluate(
        reward, (), (), data._replace(weight=weight / 2), CONTEXT
    )
    np.testing.assert_allclose(half[2], 2 * share, rtol=1e-6)
    np.testing.assert_allclose(half[0], advantage, rtol=1e-6)


def test_moments_of_what_counts():
    samples = {"x": jnp.asarray(RNG.normal(size=(T, B, 2)), jnp.float32)}
    spec = jax.tree.map(lambda x: x[0, 0], samples)
    before = moments.update(moments.empty(spec), jax.tree.map(lambda x: x + 3, samples))
    weight = jnp.ones((T, B)).at[2, 1].set(0.0).at[0, 0].set(0.0)
    spoilt = jax.tree.map(lambda x: jnp.where(weight[..., None] > 0, x, jnp.nan), samples)
    after = jax.jit(moments.update)(before, spoilt, weight)
    x = np.asarray(samples["x"], np.float64)
    whole = np.concatenate([x.reshape(-1, 2) + 3, x[np.asarray(weight) > 0]])
    assert after.count == 2 * T * B - 2
    np.testing.assert_allclose(after.mean["x"], whole.mean(0), rtol=1e-4)
    np.testing.assert_allclose(after.var["x"], whole.var(0), rtol=1e-4)

    everything = moments.update(before, samples, jnp.ones((T, B)))
    plain = moments.update(before, samples)
    jax.tree.map(np.testing.assert_array_equal, everything, plain)
    for begun in (before, moments.empty(spec)):  # nothing counts: nothing changes, also at first
        none = moments.update(begun, spoilt, jnp.zeros((T, B)))
        jax.tree.map(np.testing.assert_array_equal, none, begun)


def test_normalised_rewards_have_the_deviation_of_what_counts():
    """R = 1, 2.5, 4.25; the first and the last count: deviation 1.625, for all three rewards."""
    weight, zeros = jnp.asarray(column(1, 0, 1)), column(0, 0, 0)
    data = batch(zeros, zeros, weight=weight)
    transform = rewards.normalise(0.5)
    state = transform.init(None, (Outputs(()), data))
    paid, state = transform.update(jnp.asarray(column(1, 2, 3)), state, data, CONTEXT)
    np.testing.assert_allclose(paid, column(1, 2, 3) / 1.625, rtol=1e-5)
    np.testing.assert_allclose(state["actors"], [0.5 * 4.25])
