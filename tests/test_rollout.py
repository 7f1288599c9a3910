"""Stage 1 through the public learner: true successors, recurrent carries, who acts, episodes; and
the sequences of stage 4.

A memory that keeps the batch it is given makes the whole batch visible, whatever the inside of the
rollout looks like.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import behavior, distill, envs, optimize
from jaxkd.base import Batch, Context, Discrete, Memory, Outputs, Policy
from jaxkd.distributions import Categorical, Normal
from jaxkd.returns import gae

B, LIMIT = 4, 5
jit = partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


class Params(NamedTuple):
    end: float = 0.15  # probability of a natural end in each step
    max_steps_in_episode: int = LIMIT


class Clock:
    """The observation says the step of the episode and a number drawn at its start; nothing depends
    on the action but the reward.
    """

    name = "Clock"

    def __init__(self, end=0.15):
        self.default_params = Params(end)

    def reset_env(self, key, params):
        state = {"time": jnp.int32(0), "luck": jax.random.uniform(key)}
        return self._obs(state), state

    def step_env(self, key, state, action, params):
        state = state | {"time": state["time"] + 1}
        return (
            self._obs(state),
            state,
            1.0 + 10.0 * action,
            jax.random.uniform(key) < params.end,
            {},
        )

    def is_truncated(self, state, params):
        return state["time"] >= params.max_steps_in_episode

    def action_space(self, params):
        return Discrete(2)

    def _obs(self, state):
        return jnp.stack(
            [state["time"].astype(jnp.float32), state["luck"], state["time"] * state["luck"]]
        )


def accumulator(width):
    """A recurrent policy by hand: h <- tanh(h (1 - reset) U + obs W); the value and logits are
    linear in h.
    """

    def init(key):
        keys = jax.random.split(key, 3)
        return {
            "U": jax.random.normal(keys[0], (width, width)),
            "W": jax.random.normal(keys[1], (3, width)),
            "out": jax.random.normal(keys[2], (width, 3)),
        }

    def step(params, carry, obs, reset):
        carry = jnp.tanh((carry * (1 - reset)[:, None]) @ params["U"] + obs @ params["W"])
        out = carry @ params["out"]
        return carry, Outputs(Categorical(out[:, :2]), out[:, 2])

    def unroll(params, carry, obs, reset):
        return jax.lax.scan(lambda carry, row: step(params, carry, *row), carry, (obs, reset))

    return Policy(init, lambda n: jnp.zeros((n, width)), step, unroll)


def plain(width):
    """A feed-forward policy by hand, quick to compile."""

    def init(key):
        keys = jax.random.split(key)
        return {
            "W": jax.random.normal(keys[0], (3, width)),
            "out": jax.random.normal(keys[1], (width, 3)),
        }

    def step(params, carry, obs, reset):
        out = jnp.tanh(obs @ params["W"]) @ params["out"]
        return carry, Outputs(Categorical(out[..., :2]), out[..., 2])

    return Policy(init, lambda n: (), step, step)


def always(action):
    """A policy that plays one action."""

    def step(params, carry, obs, reset):
        logits = jnp.where(jnp.arange(2) == action, 1e3, params)
        return carry, Outputs(
            Categorical(jnp.broadcast_to(logits, (*obs.shape[:-1], 2))), obs[..., 0]
        )

    return Policy(lambda key: jnp.zeros(2), lambda n: (), step, step)


RECORD = Memory(
    init=lambda spec: (), add=lambda buffer, batch: batch, sample=lambda key, buffer, batch: batch
)


def rollouts(env, student, teacher, loss, number=1, key=0, **keywords):
    """-> (teacher params, student params, the batches [T, B] of `number` updates, their metrics);
    nothing is learnt.
    """
    keywords = dict(optimizer=optax.sgd(0.0), num_minibatches=1, memory=RECORD) | keywords
    algorithm = distill(env, student, teacher, losses={"probe": loss}, **keywords)
    teacher_params = () if teacher is None else jit(teacher.init)(jax.random.key(key + 1))
    inputs = () if teacher is None else (teacher_params,)
    state, batches, metrics = jit(algorithm.init)(jax.random.key(key)), [], []
    params, step = state.params, jit(algorithm.step)
    for _ in range(number):
        state, reported = step(state._replace(memory=()), *inputs)
        batches.append(state.memory)
        metrics.append(reported)
    return teacher_params, params, batches, metrics


def read_all(student, batch):
    """A loss that reads the successors of both, and the true successor observation."""
    seen = batch.acting.value + batch.acting_next.value + batch.next_obs[..., 0]
    return (
        student.value
        + seen
        + (batch.teacher.value + batch.teacher_next.value if batch.teacher != () else 0)
    )


def replayed(policy, params, batches):
    """The policy by a plain Python loop over all rows -> (value, value at the true successor),
    lists of [T, B] by rollout.
    """
    step = jit(policy.step)
    carry, values, following = policy.initial_carry(B), [], []
    for batch in batches:
        values.append([])
        following.append([])
        for t in range(batch.reward.shape[0]):
            carry, out = step(params, carry, batch.obs[t], batch.reset[t])
            values[-1].append(out.value)
            following[-1].append(step(params, carry, batch.next_obs[t], jnp.zeros(B))[1].value)
    return [np.stack(rows) for rows in values], [np.stack(rows) for rows in following]


# --- true successors -----------------------------------------------------------------------------


@pytest.mark.parametrize("length", [4, 5, 12])
@pytest.mark.parametrize("kind", ["feedforward", "recurrent"])
def test_the_value_of_the_true_successor_is_exact(kind, length):
    """Every row that did not terminate, in two rollouts: K = 1, 1 and 3 slots; the first obs of the
    next episode is never taken.
    """
    env = envs.make(Clock(), B)
    student, teacher = (
        (plain(6), plain(7)) if kind == "feedforward" else (accumulator(6), accumulator(7))
    )
    teacher_params, params, batches, _ = rollouts(
        env, student, teacher, read_all, 2, unroll_length=length
    )
    ours, theirs = replayed(student, params, batches), replayed(teacher, teacher_params, batches)
    cut = np.concatenate([batch.truncated for batch in batches])
    assert cut.sum() >= B and np.concatenate([batch.terminated for batch in batches]).sum() > 0
    for i, batch in enumerate(batches):
        alive = np.asarray(batch.terminated) == 0
        np.testing.assert_allclose(batch.acting.value, ours[0][i], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(batch.teacher.value, theirs[0][i], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            batch.acting_next.value[alive], ours[1][i][alive], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            batch.teacher_next.value[alive], theirs[1][i][alive], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_array_equal(
            batch.obs[1:][np.asarray(batch.reset[1:]) == 0],
            batch.next_obs[:-1][np.asarray(batch.reset[1:]) == 0],
        )
        # What would be seen if a cut took the next row: the test can fail.
        rows = np.asarray(batch.truncated[:-1]) > 0
        assert (
            not rows.any()
            or np.abs(batch.acting_next.value[:-1][rows] - batch.acting.value[1:][rows]).max()
            > 1e-3
        )


def test_the_target_is_computed_from_the_true_successor():
    """lambda = 0: target = r + gamma (1 - terminated) V(next_obs), through the learner."""
    env, student = envs.make(Clock(), B), accumulator(5)

    def loss(student, batch):
        return student.value + batch.target + batch.next_obs[..., 0]

    _, params, (batch,), _ = rollouts(
        env, student, None, loss, unroll_length=7, returns=gae(0.9, 0.0)
    )
    following = replayed(student, params, [batch])[1][0]
    np.testing.assert_allclose(
        batch.target, batch.reward + 0.9 * (1 - batch.terminated) * following, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["feedforward", "recurrent"])
def test_the_teacher_says_the_same_inside_and_outside_of_the_scan(kind):
    """It steps inside where it may act, and unrolls over the stacked rows otherwise; this
    environment goes on alike under any action.
    """
    env = envs.make(Clock(), B)
    teacher = plain(7) if kind == "feedforward" else accumulator(7)
    student = plain(6)

    def loss(student, batch):
        return student.value + batch.teacher.value + batch.teacher.policy.logits[..., 0]

    inside, outside = (
        rollouts(env, student, teacher, loss, 2, unroll_length=7, behavior=acts)[2]
        for acts in (behavior.mixture(0.5), behavior.student_acts())
    )
    for one, other in zip(inside, outside, strict=True):
        np.testing.assert_array_equal(one.obs, other.obs)
        np.testing.assert_allclose(one.teacher.value, other.teacher.value, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            one.teacher.policy.logits, other.teacher.policy.logits, rtol=1e-5, atol=1e-6
        )


# --- who acts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("acts", "share"),
    [
        (behavior.student_acts(), 0.0),
        (behavior.mixture(0.0), 0.0),
        (behavior.mixture(0.5), 0.5),
        (behavior.mixture(lambda update: 1.0 * (update == 1)), 1.0),
        (behavior.mixture(1.0), 1.0),
        (behavior.teacher_acts(), 1.0),
    ],
    ids=["student", "mixture-0", "mixture-half", "schedule", "mixture-1", "teacher"],
)
def test_share_of_the_teachers_actions(acts, share, key):
    """Teacher plays 1, student 0, both for certain: the action says who acted. The schedule is
    asked at update 1.
    """
    n = 4000
    ours, theirs = (
        Outputs(Categorical(jnp.tile(jnp.array(logits), (n, 1))))
        for logits in ([1e3, 0.0], [0.0, 1e3])
    )
    action = acts.act(
        key,
        ours,
        theirs if acts.needs_teacher else (),
        Context(jnp.int32(1), jnp.float32(0), jnp.zeros(n, jnp.int32), key),
    )
    assert action.dtype == jnp.int32 and action.shape == (n,)
    mean = np.mean(action)
    assert mean == share if share in (0.0, 1.0) else abs(mean - share) < 5 * 0.5 / np.sqrt(n)


def test_mixture_of_one_samples_as_the_teacher(key):
    """The same distribution over three actions, within 5 sigma."""
    n, p = 50_000, np.array([0.2, 0.3, 0.5])
    teacher = Outputs(Categorical(jnp.tile(jnp.log(p), (n, 1)).astype(jnp.float32)))
    student = Outputs(Categorical(jnp.zeros((n, 3))))
    for acts in (behavior.mixture(1.0), behavior.teacher_acts()):
        action = acts.act(key, student, teacher, Context(jnp.int32(0), jnp.float32(0), (), key))
        assert np.all(
            np.abs(np.bincount(action, minlength=3) / n - p) < 5 * np.sqrt(p * (1 - p) / n)
        )


def test_mixture_of_continuous_actions(key):
    """Whole actions [D] come from one of both, never a part from each."""
    ours, theirs = (
        Outputs(Normal(jnp.full((100, 2), mean), jnp.full((100, 2), -20.0))) for mean in (0.0, 1.0)
    )
    action = behavior.mixture(0.5).act(
        key, ours, theirs, Context(jnp.int32(0), jnp.float32(0), (), key)
    )
    assert {tuple(row) for row in np.round(action, 3).tolist()} == {(0.0, 0.0), (1.0, 1.0)}


def test_the_mixture_acts_in_the_environment():
    """beta = 1 at update 0, then 0: DAgger's schedule, seen in the recorded actions and in the
    reward that they earned.
    """
    env = envs.make(Clock(), B)
    acts = behavior.mixture(lambda update: 1.0 * (update == 0))
    _, _, batches, _ = rollouts(
        env,
        always(0),
        always(1),
        lambda s, b: s.value + b.reward,
        2,
        unroll_length=6,
        behavior=acts,
    )
    np.testing.assert_array_equal(batches[0].action, 1)
    np.testing.assert_array_equal(batches[1].action, 0)
    np.testing.assert_array_equal(batches[0].reward, 11)
    np.testing.assert_array_equal(batches[1].reward, 1)


# --- episodes ------------------------------------------------------------------------------------


def test_return_is_below_any_before_the_first_episode_ends():
    """No natural ends, a limit of 5, four steps an update: the first ends in the second update, all
    with return 5.
    """
    env = envs.make(Clock(end=0.0), B)
    _, _, batches, metrics = rollouts(
        env, always(0), None, lambda s, b: s.value + b.reward, 3, unroll_length=4
    )
    assert metrics[0]["return"] == -np.inf and metrics[0]["episodes"] == 0
    for update in (1, 2):
        assert metrics[update]["return"] == 5 and metrics[update]["episodes"] == B
    np.testing.assert_array_equal(
        np.concatenate([b.reset[:, 0] for b in batches]), [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
    )
    np.testing.assert_array_equal(
        np.concatenate([b.truncated[:, 0] for b in batches]), [0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]
    )
    assert not np.any([b.terminated for b in batches])


class Broken(Clock):
    """In some episodes the second step pays what is no number."""

    def step_env(self, key, state, action, params):
        obs, state, reward, done, info = super().step_env(key, state, action, params)
        what = jnp.select([state["luck"] < 0.2, state["luck"] < 0.4], [jnp.nan, jnp.inf], -jnp.inf)
        breaks = (state["time"] == 2) & (state["luck"] < 0.6)
        return obs, state, jnp.where(breaks, what, reward), done, info


@pytest.mark.parametrize("made", [Clock, Broken])
def test_return_is_the_mean_of_each_environments_last_episode(made):
    """As a Python loop over the recorded rewards and ends says, with an episode_step that starts
    anew with each episode. A3: one reward of nan was in all later returns of its environment.
    """
    env, seen = envs.make(made(), B), []

    def act(key, student, teacher, context):
        return (context.episode_step % 2).astype(jnp.int32)  # so that the reward tells the step

    acts = behavior.student_acts()._replace(act=act)
    _, _, batches, metrics = rollouts(
        env, always(0), None, lambda s, b: s.value + b.reward, 3, unroll_length=6, behavior=acts
    )
    running, last, broken = np.zeros(B), np.full(B, np.nan), np.zeros(B, bool)
    for batch, reported in zip(batches, metrics, strict=True):
        np.testing.assert_array_equal(batch.action, batch.obs[..., 0] % 2)
        done = np.asarray(batch.terminated + batch.truncated)
        for t in range(6):
            running += batch.reward[t]
            last = np.where(done[t] > 0, running, last)
            broken = np.where(done[t] > 0, ~np.isfinite(running), broken)
            running = np.where(done[t] > 0, 0.0, running)
        finite = last[np.isfinite(last)]
        np.testing.assert_allclose(reported["return"], finite.mean(), rtol=1e-6)
        assert reported["episodes"] == done.sum() and reported["not_finite"] == broken.sum()
        seen.append(broken.sum())
    assert len(set(last)) > 1 and (max(seen) > min(seen) == 1 if made is Broken else max(seen) == 0)


# --- sequences -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "shuffle"), [(2, "env"), (2, "full"), (6, "env"), (6, "full")])
def test_sequences_replay_what_acted(length, shuffle):
    """In every minibatch the student says again what it said while acting: order, resets and first
    carries are right.
    """
    env = envs.make(Clock(), B)

    def difference(student, batch):
        assert batch.reward.shape[0] == length
        return jnp.abs(student.value - batch.acting.value) + jnp.abs(
            batch.obs[..., 0] - batch.acting.extra["time"]
        )

    inner = accumulator(6)

    def labelled(call):
        def labelling(params, carry, obs, reset):
            carry, out = call(params, carry, obs, reset)
            return carry, out._replace(extra={"time": obs[..., 0]})

        return labelling

    student = inner._replace(step=labelled(inner.step), unroll=labelled(inner.unroll))
    keywords = dict(unroll_length=6, sequence_length=length, num_minibatches=2, shuffle=shuffle)
    _, _, batches, metrics = rollouts(env, student, None, difference, 2, **keywords)
    assert all(reported["loss/probe"] < 1e-5 for reported in metrics)
    assert np.std(batches[0].acting.value) > 0.1


@pytest.mark.parametrize("length", [2, 6])
@pytest.mark.parametrize("shuffle", ["env", "full"])
def test_arrange_and_pick_keep_rows_together(length, shuffle):
    """Rows are numbered (environment, time): each sequence is L rows in a row of one environment,
    with the carry before its first.
    """
    time, env = jnp.meshgrid(jnp.arange(6), jnp.arange(3), indexing="ij")
    row = 100 * env + time
    none = dict.fromkeys(("next_obs", "terminated", "truncated", "acting", "teacher"), ())
    batch = Batch(
        **none,
        reset=jnp.zeros((6, 3)),
        obs={"row": jnp.stack([row, row], -1)},
        action=row,
        reward=row,
        carry=row[::length, :, None],
    )
    units = optimize.arrange(batch, length, shuffle)
    per_env = 6 // length
    assert units.reward.shape == (
        (length, per_env, 3) if shuffle == "env" else (length, 1, 3 * per_env)
    )
    seen = []
    for unit in range(units.reward.shape[2]):
        minibatch = optimize.pick(units, jnp.array([unit]))
        rows = np.asarray(minibatch.reward)
        np.testing.assert_array_equal(np.diff(rows, axis=0), 1)
        np.testing.assert_array_equal(rows[0], minibatch.carry[:, 0])
        assert np.all(rows[0] % 100 % length == 0) and minibatch.obs["row"].shape == (
            *rows.shape,
            2,
        )
        np.testing.assert_array_equal(minibatch.obs["row"][..., 1], rows)
        if shuffle == "env":
            assert len(set(rows.ravel() // 100)) == 1  # one environment, all of it
        seen += list(rows.ravel())
    assert sorted(seen) == sorted(np.asarray(row).ravel())
    both = optimize.pick(units, jnp.array([2, 0]))
    apart = [optimize.pick(units, jnp.array([i])) for i in (2, 0)]
    assert {tuple(column) for column in both.reward.T.tolist()} == {
        tuple(column) for one in apart for column in one.reward.T.tolist()
    }
    np.testing.assert_array_equal(both.reward[0], both.carry[:, 0])
