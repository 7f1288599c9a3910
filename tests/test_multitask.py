"""Several tasks as one: padded environments, teachers a task, one student with a head a task.

And several views of one observation.
"""

import json
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import actor_size, description, distill, envs, evaluate, losses, moments, networks
from jaxkd.base import Discrete, Memory, Outputs, Policy, UsageError
from jaxkd.distributions import Categorical
from jaxkd.networks.module import Spec
from jaxkd.returns import gae

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


class Params(NamedTuple):
    max_steps_in_episode: int


class Clock:
    """Tells its time in `shape` numbers; ends with probability `end`, paid 1 + action."""

    def __init__(self, limit, num_actions, shape=(2,), end=0.0, space=None, name="Clock"):
        self.default_params, self.shape, self.end, self.name = Params(limit), shape, end, name
        self.space = space or Discrete(num_actions)

    def reset_env(self, key, params):
        state = {"time": jnp.int32(0), "luck": jax.random.uniform(key)}
        return self._obs(state), state

    def step_env(self, key, state, action, params):
        state = state | {"time": state["time"] + 1}
        return self._obs(state), state, 1.0 + action, jax.random.uniform(key) < self.end, {}

    def is_truncated(self, state, params):
        return state["time"] >= params.max_steps_in_episode

    def action_space(self, params):
        return self.space

    def _obs(self, state):
        return (
            state["time"].astype(jnp.float32)
            + state["luck"]
            + jnp.arange(np.prod(self.shape), dtype=jnp.float32).reshape(self.shape)
        )


def clocks(*limits, num_envs=3, end=0.0):
    """One task a limit: i + 2 actions, i + 1 numbers."""
    return [
        envs.make(Clock(limit, i + 2, (i + 1,), end, name=f"Clock-{limit}"), num_envs)
        for i, limit in enumerate(limits)
    ]


def weights(policy, scale=0.5, seed=0):
    """Random params by numpy: no compilation of an initialisation; statistics of nothing."""
    rng, shapes = np.random.default_rng(seed), jax.eval_shape(policy.init, jax.random.key(0))
    drawn = jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape), x.dtype), shapes)
    return (
        drawn | {"statistics": moments.empty(shapes["statistics"].mean)}
        if "statistics" in drawn
        else drawn
    )


def observations(env, rows, seed=3):
    """Random rows of all tasks in turn, legal masks by task: as in a shuffled minibatch."""
    rng, spec = np.random.default_rng(seed), env.obs_spec
    task = jnp.arange(rows, dtype=jnp.int32) % len(env.tasks)
    legal = jnp.array([2, 3, 4])[: len(env.tasks)]
    mask = jnp.arange(spec["mask"].shape[0])[None] < legal[task][:, None]
    return {
        "obs": jnp.asarray(rng.normal(size=(rows, *spec["obs"].shape)), jnp.float32),
        "task": task,
        "mask": mask,
    }


# --- environments -----------------------------------------------------------------------------


def test_concat_steps_each_task_as_alone(key):
    """Three games of gymnax and one grid of bits, with resets.

    Every number is that of the single task, bit for bit.
    """
    grid = envs.make(Clock(6, 5, (2, 2), 0.2, name="Grid"), 3)
    grid = envs.view(grid, bits=lambda obs: obs > 3, time=lambda obs: obs[0, 0].astype(jnp.int32))
    singles = [
        envs.make("CartPole-v1", 2),
        envs.make("Acrobot-v1", 1),
        envs.make("MountainCar-v0", 2, max_steps=7),
        grid,
    ]
    env = envs.concat(*singles)
    assert (env.num_envs, env.action_space, env.name) == (
        8,
        Discrete(5),
        "CartPole-v1+Acrobot-v1+MountainCar-v0+Grid",
    )
    assert (
        env.tasks == ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Grid")
        and env.truncates
        and (env.max_steps, env.cut_steps) == (500, 6)
    )
    rows, legal = [slice(0, 2), slice(2, 3), slice(3, 5), slice(5, 8)], [2, 3, 3, 5]
    state, obs = jit(env.reset)(key)
    alone = [jit(single.reset)(jax.random.fold_in(key, i)) for i, single in enumerate(singles)]
    assert jax.tree.map(lambda x: (x.shape[1:], x.dtype), obs) == jax.tree.map(
        lambda x: (x.shape, x.dtype), env.obs_spec
    )
    step, steps, ends = jit(env.step), [jit(single.step) for single in singles], 0
    for t in range(15):
        key_step = jax.random.fold_in(key, 100 + t)
        action = jax.random.randint(key_step, (8,), 0, 5)
        state, now = step(key_step, state, action)
        for i in range(4):
            chosen = jnp.minimum(action[rows[i]], legal[i] - 1)
            inner, expected = steps[i](jax.random.fold_in(key_step, i), alone[i][0], chosen)
            alone[i] = inner, expected.obs
            for mine, theirs in ((now.obs, expected.obs), (now.next_obs, expected.next_obs)):
                flat = np.concatenate(
                    [
                        np.asarray(x, np.float32).reshape(len(x), -1)
                        for x in jax.tree.leaves(theirs)
                    ],
                    1,
                )
                ours = mine["obs"][rows[i], : flat.shape[1]]  # another program: rounds otherwise
                np.testing.assert_allclose(ours, flat, rtol=1e-5, atol=1e-6)
                assert not np.any(mine["obs"][rows[i], flat.shape[1] :])
                np.testing.assert_array_equal(mine["task"][rows[i]], i)
                np.testing.assert_array_equal(
                    mine["mask"][rows[i]],
                    np.broadcast_to(np.arange(5) < legal[i], mine["mask"][rows[i]].shape),
                )
            for field in ("reward", "terminated", "truncated"):
                np.testing.assert_array_equal(
                    getattr(now, field)[rows[i]], getattr(expected, field)
                )
        near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        jax.tree.map(near, state, tuple(inner for inner, _ in alone))
        ends += np.sum(now.terminated + now.truncated)
    assert ends > 4


def test_an_action_beyond_the_last_is_the_last(key):
    env = envs.concat(*clocks(9, 9))
    state, _ = env.reset(key)
    for action, paid in ((0, [1] * 6), (1, [2] * 6), (2, [2, 2, 2, 3, 3, 3])):
        np.testing.assert_array_equal(env.step(key, state, jnp.full(6, action))[1].reward, paid)


def test_limits_names_groups():
    env, endless = (
        envs.concat(*clocks(5, 9)),
        clocks(5)[0]._replace(max_steps=None, truncates=False),
    )
    assert (env.max_steps, env.cut_steps) == (9, 5)
    assert [
        envs.concat(endless, *clocks(7))[i]
        for i in map(endless._fields.index, ("max_steps", "cut_steps"))
    ] == [None, 7]
    score = evaluate(
        env,
        networks.multihead(env, (4,)),
        weights(networks.multihead(env, (4,))),
        jax.random.key(0),
        num_episodes=12,
    )
    np.testing.assert_array_equal(score.lengths.reshape(2, 6), np.tile([5, 5, 5, 9, 9, 9], (2, 1)))
    twins = envs.concat(*clocks(5), *clocks(5), *clocks(7))
    assert (
        twins.tasks == ("Clock-5#0", "Clock-5#1", "Clock-7")
        and twins.name == "Clock-5+Clock-5+Clock-7"
    )
    grouped = [envs.make(Clock(5, 2), 4, group_size=2) for _ in range(2)]
    assert envs.concat(*grouped).group_size == 2
    reset = envs.concat(*grouped).reset(jax.random.key(0))[1]["obs"]
    np.testing.assert_array_equal(reset[0::2], reset[1::2])


def test_pad_is_one_task_of_the_concat(key):
    singles = clocks(9, 4)
    env = envs.concat(*singles)
    padded = envs.pad(singles[1], like=env, task=1)
    assert (padded.obs_spec, padded.action_space) == (env.obs_spec, env.action_space)
    assert (padded.num_envs, padded.max_steps, padded.name, padded.tasks) == (3, 4, "Clock-4", ())
    (_, mine), (_, theirs) = padded.reset(jax.random.fold_in(key, 1)), env.reset(key)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[3:]), mine, theirs)
    alone = envs.pad(singles[0])
    assert alone.obs_spec["obs"].shape == (1,) and alone.action_space == Discrete(2)


def boxes():
    return envs.make("Pendulum-v1", 2)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: envs.concat(), "at least one Env"),
        (lambda: envs.concat("CartPole-v1"), "must be an Env"),
        (lambda: envs.concat(*clocks(5), boxes()), "'Pendulum-v1' has continuous actions .Box"),
        (
            lambda: envs.concat(envs.concat(*clocks(5, 6)), *clocks(5)),
            "'Clock-5.Clock-6' is several tasks already",
        ),
        (
            lambda: envs.concat(*clocks(5), envs.make(Clock(5, 2), 4, group_size=2)),
            r"one group_size, got \[1, 2\]",
        ),
        (
            lambda: envs.pad(*clocks(5), obs_size=3, num_actions=1),
            "'Clock-5' has 1 numbers and 2 actions, more than obs_size=3 or num",
        ),
        (lambda: envs.pad(*clocks(5), like=clocks(5)[0]), "like='Clock-5' has no tasks"),
        (
            lambda: envs.pad(*clocks(5), like=envs.concat(*clocks(5, 6)), task=2),
            r"task must be in \[0, 1\] .Clock-5, Clock-6., got 2",
        ),
        (lambda: envs.view(*clocks(5)), "at least one field"),
        (
            lambda: networks.concat(clocks(5)[0], [], []),
            "networks.concat is for the observations of envs.concat or envs.pad, got",
        ),
        (
            lambda: networks.multihead(clocks(5)[0], (4,)),
            "networks.multihead is for the observations of envs.concat",
        ),
        (
            lambda: networks.multihead(envs.pad(*clocks(5)), (4,)),
            "num_tasks .default: the number of env.tasks. must be a positive int",
        ),
        (
            lambda: networks.concat(
                envs.concat(*clocks(5, 6)), [networks.mlp(clocks(5)[0], (4,))], clocks(5)
            ),
            r"a task \(2\), got 1 and 1",
        ),
        (
            lambda: networks.concat(
                envs.concat(*clocks(5, 6)),
                [networks.mlp(env, (4,)) for env in clocks(5, 6, 7)[1:]],
                clocks(5, 6, 7)[1:],
            ),
            r"task 1 has 3 numbers and Discrete\(n=4\), more than the 2",
        ),
        (
            lambda: networks.concat(
                envs.concat(*clocks(5, 6)),
                [networks.mlp(env, (4,)) for env in clocks(5, 6)[::-1]],
                clocks(5, 6),
            ),
            r"policy 0 expects obs \(2,\) float32 and 3 actions; "
            r"'Clock-5' gives obs \(1,\) float32 and 2 actions",
        ),
    ],
)
def test_errors(build, words):
    with pytest.raises(UsageError, match=words):
        build()


# --- the learner with limits that differ ------------------------------------------------------


@pytest.mark.parametrize("kind", ["feedforward", "recurrent"])
def test_true_successors_with_very_different_limits(kind):
    """Limits 2 and 13, T = 8.

    Up to five cuts of an environment in one rollout, and V(next_obs) is right after each of them.
    """
    env = envs.concat(*clocks(2, 13, end=0.1))
    network = networks.mlp if kind == "feedforward" else networks.gru
    student = networks.multihead(env, (5,), network=network)

    def loss(student, batch):
        return (
            student.value + batch.target + batch.acting_next.value + batch.next_obs["obs"][..., 0]
        )

    keywords = dict(
        unroll_length=8,
        num_minibatches=1,
        memory=RECORD,
        optimizer=optax.sgd(0.0),
        returns=gae(0.9, 0.0),
    )
    algorithm = distill(env, student, losses={"loss": loss}, **keywords)
    step, single = jit(algorithm.step), jit(student.step)
    state, params = jit(algorithm.init)(jax.random.key(0)), weights(student)
    state, carry, cuts = state._replace(params=params), student.initial_carry(6), []
    for _ in range(3):
        state, metrics = step(state._replace(memory=()))
        batch = state.memory
        for t in range(8):
            obs, next_obs = jax.tree.map(lambda x, t=t: x[t], (batch.obs, batch.next_obs))
            carry, _ = single(params, carry, obs, batch.reset[t])
            following = single(params, carry, next_obs, jnp.zeros(6))[1].value
            alive = np.asarray(batch.terminated[t]) == 0
            np.testing.assert_allclose(
                batch.acting_next.value[t][alive], following[alive], atol=1e-5
            )
        cuts.append(batch.truncated.sum(0))
    assert (
        np.max(cuts) >= 4 and np.sum(np.array(cuts)[:, 3:]) > 0
    )  # the short task is cut often, the long one at all


def test_returns_are_reported_by_task():
    """Each clock pays 1 a step under action 0: a return is its limit.

    Before the first end it is -inf, for each task apart.
    """
    env = envs.concat(*clocks(3, 7))

    def step(params, carry, obs, reset):
        return carry, Outputs(Categorical(jnp.zeros((*obs["task"].shape, 3)).at[..., 0].set(1e3)))

    policy = Policy(lambda key: jnp.zeros(()), lambda n: (), step, step)
    algorithm = distill(
        env,
        policy,
        losses={"x": lambda student, batch: batch.reward},
        unroll_length=4,
        num_minibatches=1,
    )
    state, update = jit(algorithm.init)(jax.random.key(0)), jit(algorithm.step)
    state, first = update(state)
    state, second = update(state)
    assert first["return/Clock-3"] == first["return"] == 3 and first["return/Clock-7"] == -np.inf
    assert second["return/Clock-3"] == 3 and second["return/Clock-7"] == 7 and second["return"] == 5


# --- teachers of single tasks -----------------------------------------------------------------


def teachers_of(singles):
    """Unlike ones: recurrent, feed-forward with statistics, a convolution where there is a grid."""
    return [
        networks.gru(singles[0], (4,)),
        networks.mlp(singles[1], (3,), normalise=True),
        networks.cnn(singles[2], (2,), (4,)),
    ]


def test_each_row_is_answered_by_its_tasks_teacher():
    """Logits, values and carries are those of the single policy on its own observation.

    The other actions have logit -1e9.
    """
    singles = [*clocks(5, 6), envs.make(Clock(5, 4, (4, 3, 2), name="Grid"), 3)]
    env, own = envs.concat(*singles), teachers_of(singles)
    teacher = networks.concat(env, own, singles)
    params = tuple(weights(policy, seed=i) for i, policy in enumerate(own))
    assert jax.tree.structure(params) == jax.tree.structure(
        jax.eval_shape(teacher.init, jax.random.key(0))
    )
    rows, reset = 9, jnp.zeros(9)
    obs, carry = observations(env, rows), jax.tree.map(jnp.ones_like, teacher.initial_carry(rows))
    after, out = jit(teacher.step)(params, carry, obs, reset)
    for i, (policy, single) in enumerate(zip(own, singles, strict=True)):
        size, actions = int(np.prod(single.obs_spec.shape)), single.action_space.n
        cut = obs["obs"][:, :size].reshape(rows, *single.obs_spec.shape)
        last, expected = jit(policy.step)(params[i], carry[i], cut, reset)
        mine = np.asarray(obs["task"]) == i
        np.testing.assert_allclose(
            out.policy.logits[mine, :actions], expected.policy.logits[mine], rtol=1e-6
        )
        np.testing.assert_array_equal(out.policy.logits[mine, actions:], -1e9)
        np.testing.assert_allclose(out.value[mine], expected.value[mine], rtol=1e-6)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), after[i], last)
    sequence = jax.tree.map(lambda x: jnp.stack([x, x]), obs)
    unrolled = jit(teacher.unroll)(params, carry, sequence, jnp.zeros((2, rows)))[1]
    np.testing.assert_allclose(unrolled.value[0], out.value, atol=1e-6)
    assert (
        np.abs(unrolled.value[1] - out.value)[obs["task"] == 0].min() > 1e-6
    )  # the recurrent one went on


def test_a_padded_grid_comes_back_as_it_was(key):
    """What a teacher sees of the padded observation is its own: shapes, bits, fields.

    On its environment it plays as alone.
    """
    seen = []

    def step(params, carry, obs, reset):
        seen.append(jax.tree.map(lambda x: (x.shape[reset.ndim :], x.dtype), obs))
        best = (obs["grid"].sum((-1, -2, -3)) + obs["time"]) % 4
        return carry, Outputs(Categorical(params * jax.nn.one_hot(best, 4)))

    raw = envs.make(Clock(5, 4, (4, 3, 2), name="Grid"), 2)
    grid = envs.view(
        raw, grid=lambda obs: obs > 20, time=lambda obs: obs[0, 0, 0].astype(jnp.int32)
    )
    policy, other = (
        Policy(lambda key: jnp.ones(()), lambda n: (), step, step),
        networks.mlp(*clocks(30), (3,)),
    )
    env = envs.concat(*clocks(30), grid)
    teacher = networks.concat(env, [other, policy], [*clocks(30), grid])
    together = evaluate(
        envs.pad(grid, like=env, task=1),
        teacher,
        (weights(other), jnp.ones(())),
        key,
        num_episodes=4,
    )
    alone = evaluate(grid, policy, jnp.ones(()), key, num_episodes=4)
    np.testing.assert_array_equal(together.returns, alone.returns)
    assert np.all(alone.lengths == 5) and np.all(alone.returns > 7)
    assert all(x == {"grid": ((4, 3, 2), jnp.bool_), "time": ((), jnp.int32)} for x in seen)


# --- one student for all ----------------------------------------------------------------------


def test_heads_are_chosen_by_task():
    """By hand from the inner network's params: the task's logits where legal, -1e9 elsewhere.

    And the task's value, and its value of a stream.
    """
    env = envs.concat(*clocks(5, 6, 7))
    student = networks.multihead(env, (6, 5), extra=("rnd",), separate=True)
    params, obs = weights(student), observations(env, 12)
    out = jit(student.step)(params, (), obs, jnp.ones(12))[1]
    p = jax.tree.map(np.asarray, params["params"])

    def torso(name):
        x = np.asarray(obs["obs"])
        for i in range(2):
            x = np.tanh(x @ p[name][f"Dense_{i}"]["kernel"] + p[name][f"Dense_{i}"]["bias"])
        return x

    features, behind = torso("actor"), torso("critic")
    for n, task in enumerate(np.arange(12) % 3):
        logits = (features[n] @ p["policy"]["kernel"] + p["policy"]["bias"])[
            4 * task : 4 * task + 4
        ]
        np.testing.assert_allclose(out.policy.logits[n, : task + 2], logits[: task + 2], atol=1e-5)
        np.testing.assert_array_equal(out.policy.logits[n, task + 2 :], np.float32(-1e9))
        for name, value in (("value", out.value), ("rnd", out.extra["rnd"])):
            head = p[name if task == 0 else f"{name}_{task}"]
            np.testing.assert_allclose(
                value[n], (behind[n] @ head["kernel"] + head["bias"])[0], atol=1e-5
            )
    np.testing.assert_allclose(out.features, features, atol=1e-5)
    assert set(out.extra) == {"rnd", "hidden_0", "hidden_1"}
    sampled = out.policy.sample(jax.random.key(0)), out.policy.mode()
    assert all(np.all(x < np.arange(12) % 3 + 2) for x in sampled)


def test_gradient_of_a_head_comes_from_its_own_rows():
    """A loss over rows of task 1 leaves the heads of tasks 0 and 2 exactly alone.

    It moves the trunk and its own.
    """
    env = envs.concat(*clocks(5, 6, 7))
    student = networks.multihead(env, (6,))
    obs = observations(env, 12)

    def loss(params):
        out = student.step(params, (), obs, jnp.ones(12))[1]
        return jnp.sum(jnp.where(obs["task"] == 1, out.policy.entropy() + out.value, 0.0))

    gradient = jit(jax.grad(loss))(weights(student))["params"]
    moved = np.asarray(gradient["policy"]["kernel"]).reshape(6, 3, 4)
    assert (
        not np.any(moved[:, 0])
        and not np.any(moved[:, 2])
        and not np.any(moved[:, 1, 3])
        and np.all(moved[:, 1, :3] != 0)
    )
    assert not np.any(gradient["value"]["kernel"]) and not np.any(gradient["value_2"]["kernel"])
    assert np.any(gradient["value_1"]["kernel"]) and np.any(gradient["actor"]["Dense_0"]["kernel"])


@pytest.mark.parametrize("temperature", [0.01, 1.0, 4.0])
def test_illegal_actions_cost_nothing(temperature):
    """KL, entropy and log_prob of policies with -1e9 equal those without these actions.

    KL both ways, and the gradients too; nothing is nan.
    """
    rng = np.random.default_rng(0)
    ours, theirs = (jnp.asarray(rng.normal(size=(5, 2)), jnp.float32) for _ in range(2))

    def measures(ours, theirs, pad):
        p, q = (
            Categorical(jnp.pad(x, ((0, 0), (0, pad)), constant_values=-1e9)).temper(temperature)
            for x in (ours, theirs)
        )
        return jnp.sum(
            p.kl(q) + 2 * q.kl(p) + 3 * p.entropy() + 4 * p.log_prob(jnp.zeros(5, jnp.int32))
        )

    padded, bare = (jax.value_and_grad(measures, (0, 1))(ours, theirs, pad) for pad in (2, 0))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), padded, bare)
    unmasked = Categorical(jnp.zeros((5, 4)))  # a student that masks nothing: still finite
    teacher = Categorical(jnp.pad(theirs, ((0, 0), (0, 2)), constant_values=-1e9))
    assert np.all(np.isfinite(teacher.kl(unmasked)))
    assert np.all(
        np.isfinite(jax.grad(lambda z: teacher.kl(Categorical(z)).sum())(unmasked.logits))
    )


def test_three_games_in_one_learner():
    """CartPole, Acrobot, MountainCar; untrained teachers.

    Masked heads learn all three at once, compiled once, reported by task.
    """
    singles = [
        envs.make("CartPole-v1", 4),
        envs.make("Acrobot-v1", 4, max_steps=6),
        envs.make("MountainCar-v0", 4, max_steps=5),
    ]
    env = envs.concat(*singles)
    own = [networks.mlp(single, (7,)) for single in singles]
    teacher = networks.concat(env, own, singles)
    student = networks.multihead(env, (6,), network=networks.gru, normalise=True)
    traces = []

    def by_task(student, batch):
        traces.append(1)
        return batch.teacher.policy.kl(student.policy) * (batch.obs["task"] == 2)

    terms = {"kl": losses.forward_kl(), "back": losses.reverse_kl(), "cars": losses.watch(by_task)}
    algorithm = distill(
        env,
        student,
        teacher,
        losses=terms,
        unroll_length=8,
        num_minibatches=2,
        optimizer=optax.adam(3e-2),
    )
    params = tuple(weights(policy, seed=i) for i, policy in enumerate(own))
    step, state, reported = jit(algorithm.step), jit(algorithm.init)(jax.random.key(0)), []
    for _ in range(12):
        state, metrics = step(state, params)
        reported.append(metrics)
        if len(reported) == 1:
            once = len(traces)
    assert once == len(traces) and step._cache_size() == 1
    assert {"return", *(f"return/{task}" for task in env.tasks)} <= set(metrics)
    assert (
        metrics["return/Acrobot-v1"] == -6
        and metrics["return/MountainCar-v0"] == -5
        and metrics["return/CartPole-v1"] > 0
    )
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((state.params, metrics)))
    for name in ("loss/kl", "loss/back", "loss/cars"):
        assert reported[-1][name] < 0.5 * reported[0][name], name


def test_a_plain_network_sees_the_task_as_a_number():
    """`mlp` on the padded observation works.

    It masks nothing, and `select` leaves it "obs" alone.
    """
    env = envs.concat(*clocks(5, 6))
    for student, inputs in (
        (networks.mlp(env, (4,)), 2 + 1 + 3),
        (networks.mlp(env, (4,), select="obs"), 2),
    ):
        assert weights(student)["params"]["actor"]["Dense_0"]["kernel"].shape == (inputs, 4)
        algorithm = distill(
            env, student, losses={"x": lambda s, b: s.value**2}, unroll_length=2, num_minibatches=1
        )
        _, metrics = jax.eval_shape(
            algorithm.step, jax.eval_shape(algorithm.init, jax.random.key(0))
        )
        assert "return/Clock-6" in metrics


@pytest.mark.parametrize("network", [networks.mlp, networks.lstm], ids=["mlp", "lstm"])
def test_a_description_of_all_heads(network):
    """It holds the padded specification: the same student is made again without an environment."""
    env = envs.concat(*clocks(5, 6))
    student = networks.multihead(env, (6,), network=network, extra=("rnd",), normalise=True)
    given = description.keywords(student)
    assert description.name(student) == "multihead" and given["network"] is network
    assert given["normalise"] is True  # a keyword of the network
    assert description.spec(student) == Spec(env.obs_spec, env.action_space, env.tasks)
    again = description.rebuild(json.loads(json.dumps(description.plain(student))))
    shapes = [jax.eval_shape(p.init, jax.random.key(0)) for p in (student, again)]
    assert shapes[0] == shapes[1] and again.description == student.description
    if network is networks.mlp:
        assert (
            actor_size(student, shapes[0], env.obs_spec) == 3 * 6 + 7 * 6
        )  # 2 numbers, 2 tasks x 3 actions
    own = networks.multihead(
        env,
        (6,),
        network=lambda spec, hidden, extra: networks.temper(
            networks.mlp(spec, hidden, extra=extra), 2.0
        ),
    )
    with pytest.raises(UsageError, match=r"multihead\(network=...\): .*no importable name"):
        description.plain(own)


# --- views ------------------------------------------------------------------------------------


def test_a_privileged_teacher_and_a_blind_student(key):
    """In one learner the teacher's numbers come from "full" alone, the student's from "blind".

    Both fields are exact, also next_obs.
    """
    raw = envs.make("CartPole-v1", 4)
    env = envs.view(raw, full=lambda obs: obs, blind=lambda obs: obs[jnp.array([0, 2])])
    assert (
        jax.tree.map(lambda x: x.shape, env.obs_spec) == {"full": (4,), "blind": (2,)}
        and env.max_steps == raw.max_steps
    )
    state, obs = env.reset(key)
    inner, expected = raw.reset(key)
    np.testing.assert_array_equal(obs["full"], expected)
    _, now = jit(env.step)(key, state, jnp.ones(4, jnp.int32))
    _, then = jit(raw.step)(key, inner, jnp.ones(4, jnp.int32))
    np.testing.assert_array_equal(now.next_obs["blind"], then.next_obs[:, jnp.array([0, 2])])
    teacher, student = (
        networks.mlp(env, (8,), select="full"),
        networks.gru(env, (5,), select="blind"),
    )
    algorithm = distill(
        env,
        student,
        teacher,
        losses={"kl": losses.forward_kl()},
        unroll_length=8,
        num_minibatches=2,
        memory=RECORD,
        optimizer=optax.sgd(0.1),
    )
    teacher_params = weights(teacher)
    assert teacher_params["params"]["actor"]["Dense_0"]["kernel"].shape == (4, 8)
    first = jit(algorithm.init)(key)
    assert first.params["params"]["actor"]["Dense_0"]["kernel"].shape == (2, 5)
    after, metrics = jit(algorithm.step)(first, teacher_params)
    batch = after.memory
    plain = networks.mlp(raw, (8,))
    logits = jit(plain.unroll)(teacher_params, (), batch.obs["full"], batch.reset)[1].policy.logits
    np.testing.assert_allclose(batch.teacher.policy.logits, logits, atol=1e-6)
    assert np.isfinite(metrics["loss/kl"]) and metrics["loss/kl"] > 0
    assert np.any(after.params["params"]["recurrent"] != first.params["params"]["recurrent"])


def test_a_view_of_several_tasks():
    """It keeps the tasks where it keeps "task"."""
    env = envs.concat(*clocks(5, 6))
    assert (
        envs.view(env, obs=lambda obs: obs["obs"], task=lambda obs: obs["task"]).tasks == env.tasks
    )
    assert envs.view(env, obs=lambda obs: obs["obs"]).tasks == ()
