"""Reward transforms: numbers by hand, shaping that telescopes, and the theorem that makes a loss on
one's own states a gradient.
"""

import itertools

import batches
import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkd
from jaxkd import description, losses, networks, returns, rewards
from jaxkd.base import Batch, Context, Outputs, UsageError
from jaxkd.distributions import Categorical, Normal

T, B, A = 4, 3, 5
RNG = np.random.default_rng(2)
REWARD = RNG.normal(size=(T, B)).astype(np.float32)
Z, V, Z_NEXT, V_NEXT = 2 * RNG.normal(size=(4, T, B, A)).astype(np.float32)
CONTEXT = Context(jnp.int32(3), jnp.float32(0), (), jax.random.key(0))


def batch(**fields) -> Batch:
    """[T, B], or the shape of the reward, with `fields`."""
    return batches.batch(fields.get("reward", REWARD).shape, **fields)


def paid(transform, reward=REWARD, data=None):
    data = batch() if data is None else data
    out, state = transform.update(jnp.asarray(reward), transform.init(None, None), data, CONTEXT)
    assert state == ()
    return out


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


# --- combinators ---------------------------------------------------------------------------------


def test_combinators_by_hand():
    bonus = RNG.normal(size=(T, B)).astype(np.float32)
    np.testing.assert_allclose(
        paid(rewards.add(lambda batch, context: jnp.asarray(bonus))), REWARD + bonus, rtol=1e-6
    )
    np.testing.assert_allclose(
        paid(rewards.add(lambda batch, context: jnp.asarray(bonus), -0.5)),
        REWARD - 0.5 * bonus,
        rtol=1e-5,
    )
    rising = rewards.add(
        lambda batch, context: jnp.asarray(bonus), lambda update: 1.0 * update
    )  # update 3
    np.testing.assert_allclose(paid(rising), REWARD + 3 * bonus, rtol=1e-5)
    np.testing.assert_array_equal(
        paid(rewards.replace(lambda batch, context: jnp.asarray(bonus))), bonus
    )
    np.testing.assert_allclose(paid(rewards.scale(0.1)), 0.1 * REWARD, rtol=1e-6)
    np.testing.assert_allclose(
        paid(rewards.scale(lambda update: 2.0**update)), 8 * REWARD, rtol=1e-6
    )
    np.testing.assert_array_equal(paid(rewards.clip(-0.5, 0.25)), np.clip(REWARD, -0.5, 0.25))
    coefs = jax.vmap(
        lambda coef: paid(rewards.add(lambda batch, context: jnp.asarray(bonus), coef))
    )(jnp.array([0.0, 2.0]))
    np.testing.assert_allclose(coefs, [REWARD, REWARD + 2 * bonus], rtol=1e-5)


MADE = {
    "add": lambda stream: rewards.add(lambda batch, context: batch.reward, stream=stream),
    "replace": lambda stream: rewards.replace(lambda batch, context: batch.reward, stream=stream),
    "scale": lambda stream: rewards.scale(2.0, stream=stream),
    "clip": lambda stream: rewards.clip(-1.0, 1.0, stream=stream),
    "normalise": lambda stream: rewards.normalise(stream=stream),
    "teacher_reward": lambda stream: rewards.teacher_reward(stream=stream),
    "teacher_log_ratio": lambda stream: rewards.teacher_log_ratio(stream=stream),
    "successor": lambda stream: rewards.successor(
        lambda student, teacher: teacher.policy.entropy(), stream=stream
    ),
    "potential_shaping": lambda stream: rewards.potential_shaping(stream=stream),
    "rnd": lambda stream: rewards.rnd(stream=stream),
    "drnd": lambda stream: rewards.drnd(stream=stream),
    "rdd": lambda stream: rewards.rdd(stream=stream),
    "ensemble": lambda stream: rewards.ensemble(stream=stream),
    "icm": lambda stream: rewards.icm(stream=stream),
    "learned": lambda stream: rewards.learned(
        rewards.Model(
            lambda key, rows: ((), jnp.zeros(())),
            lambda fixed, params, rows: jnp.zeros(rows.shape[0]),
            lambda key, fixed, params, rows: params * jnp.zeros(rows.shape[0]),
        ),
        lambda batch: batch.next_obs,
        stream=stream,
    ),
    "count": lambda stream: rewards.count(lambda obs: jnp.int32(0), 1, stream=stream),
    "disagreement": lambda stream: rewards.disagreement(stream=stream),
}


def test_every_transform_is_here():
    assert set(MADE) == set(rewards.__all__) - {"Model", "Predictor", "random_statistics"}


@pytest.mark.parametrize("name", MADE)
def test_every_transform_names_its_stream_and_wants_two_axes(name):
    zeros, acting = jnp.zeros((T, B, 2)), Outputs(Categorical(jnp.zeros((T, B, A))))
    transform, spec = MADE[name]("aux"), ((), batch(obs=zeros, next_obs=zeros, acting=acting))
    state = jax.jit(lambda: transform.init(jax.random.key(0), spec))()
    assert transform.stream == "aux" and MADE[name]("").stream == ""
    with pytest.raises(AssertionError, match="rank"):
        transform.update(jnp.zeros(T), state, spec[1], CONTEXT)


def test_a_bonus_of_another_shape_is_refused():
    for make in (rewards.add, rewards.replace):
        with pytest.raises(AssertionError, match="shape"):
            paid(make(lambda batch, context: jnp.zeros(B)))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: rewards.clip(1.0, -1.0), "low < high, got 1 and -1"),
        (lambda: rewards.add(1.0), r"fn must be a function \(batch, context\)"),
        (lambda: rewards.replace(None), r"fn must be a function \(batch, context\)"),
        (
            lambda: rewards.successor(0.99),
            r"measure must be a function \(student Outputs, teacher Outputs\)",
        ),
        (
            lambda: rewards.successor(lambda s, t: 0, gamma=1.1),
            r"gamma must be in \[0, 1\], got 1.1",
        ),
        (lambda: rewards.potential_shaping(2), r"gamma must be in \[0, 1\], got 2"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_labels():
    assert description.show(rewards.teacher_reward(0.5)) == "teacher_reward(coef=0.5)"
    assert description.show(rewards.potential_shaping(0.9)) == "potential_shaping(gamma=0.9)"


# --- what the teacher pays -----------------------------------------------------------------------


def test_teacher_reward_is_the_log_probability_of_the_action():
    action = RNG.integers(A, size=(T, B))
    data = batch(action=jnp.asarray(action), teacher=Outputs(Categorical(jnp.asarray(V))))
    expected = REWARD + 0.5 * np.take_along_axis(log_softmax(V), action[..., None], -1)[..., 0]
    np.testing.assert_allclose(
        paid(rewards.teacher_reward(0.5), data=data), expected, rtol=1e-5, atol=1e-6
    )
    normal = batch(
        action=jnp.ones((T, B, 2)),
        teacher=Outputs(Normal(jnp.zeros((T, B, 2)), jnp.zeros((T, B, 2)))),
    )
    np.testing.assert_allclose(
        paid(rewards.teacher_reward(), 0 * REWARD, normal), -np.log(2 * np.pi) - 1, rtol=1e-6
    )


def test_successor_pays_for_the_next_state_and_nothing_after_the_end():
    """-gamma H(T || S) at the true successor, which the last row and a cut one have too; 0 where
    the episode ended.
    """
    terminated, truncated = np.zeros((2, T, B), np.float32)
    terminated[1, 0], truncated[2, 1] = 1, 1
    data = batch(
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray(truncated),
        acting_next=Outputs(Categorical(jnp.asarray(Z_NEXT))),
        teacher_next=Outputs(Categorical(jnp.asarray(V_NEXT))),
    )
    cost = -(np.exp(log_softmax(V_NEXT)) * log_softmax(Z_NEXT)).sum(-1)
    measure = lambda student, teacher: teacher.policy.cross_entropy(student.policy)
    out = paid(rewards.successor(measure, gamma=0.9, coef=2.0), data=data)
    np.testing.assert_allclose(out, REWARD - 2 * 0.9 * cost * (1 - terminated), rtol=1e-5)
    assert out[1, 0] == REWARD[1, 0]
    np.testing.assert_allclose(
        paid(rewards.successor(measure), data=data), REWARD - cost * (1 - terminated), rtol=1e-5
    )


def test_shaping_telescopes_through_termination_and_truncation():
    """sum_t gamma^t F_t = gamma^n Phi(s_n) - Phi(s_0) for each episode, with Phi(terminal) = 0 and
    the value of what was cut off.
    """
    T, B, gamma = 40, 5, 0.95
    ends = RNG.choice(3, size=(T, B), p=[0.85, 0.08, 0.07])
    terminated, truncated = (ends == 1).astype(np.float32), (ends == 2).astype(np.float32)
    assert terminated.sum() > 4 and truncated.sum() > 4
    value, cut_off = RNG.normal(size=(2, T, B)).astype(np.float32)
    following = np.where(ends > 0, cut_off, np.concatenate([value[1:], cut_off[-1:]]))
    data = batch(
        reward=jnp.zeros((T, B)),
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray(truncated),
        teacher=Outputs((), jnp.asarray(value)),
        teacher_next=Outputs((), jnp.asarray(following)),
    )
    bonus = np.asarray(
        paid(rewards.potential_shaping(gamma), np.zeros((T, B), np.float32), data), np.float64
    )
    for env in range(B):
        start = 0
        for t in range(T):
            if ends[t, env] or t == T - 1:
                length = t + 1 - start
                total = (gamma ** np.arange(length) * bonus[start : t + 1, env]).sum()
                end = gamma**length * following[t, env] * (1 - terminated[t, env])
                np.testing.assert_allclose(total, end - value[start, env], atol=1e-5)
                start = t + 1
    twice = paid(rewards.potential_shaping(gamma, 2.0), np.zeros((T, B), np.float32), data)
    np.testing.assert_allclose(twice, 2 * bonus, rtol=1e-5)


def test_shaping_leaves_the_greedy_policy_alone():
    """Tabular Q-learning, to its fixed point, in FourRooms: every cell, every action, random
    potentials; the environment's own transitions.
    """
    gamma, side = 0.9, 13
    with jax.ensure_compile_time_eval():
        import gymnax

        game, params = gymnax.make("FourRooms-misc")
    free = np.argwhere(np.asarray(game.occupied_map) < 1).astype(np.int32)
    _, first = game.reset_env(jax.random.key(0), params)
    cell, action = (
        x.ravel() for x in np.meshgrid(np.arange(len(free)), np.arange(4), indexing="ij")
    )
    sure = params.replace(fail_prob=0.0)
    move = lambda pos, action: game.step_env(
        jax.random.key(0), first.replace(pos=pos), action, sure
    )
    _, after, reward, terminated, *_ = jax.jit(jax.vmap(move))(
        jnp.asarray(free[cell]), jnp.asarray(action, jnp.int32)
    )
    number = np.full((side, side), -1)
    number[tuple(free.T)] = np.arange(len(free))
    to, reward, ended = (
        number[tuple(np.asarray(after.pos).T)],
        np.asarray(reward, np.float64),
        np.asarray(terminated, np.float64),
    )
    assert ended.sum() >= 1

    def greedy(reward):
        q = np.zeros((len(free), 4))
        for _ in range(400):
            q = (reward + gamma * (1 - ended) * q.max(-1)[to]).reshape(q.shape)
        return q >= q.max(-1, keepdims=True) - 1e-5

    plain = greedy(reward)
    assert plain.all(-1).sum() <= 1  # the goal itself
    for seed in range(5):
        potential = np.random.default_rng(seed).normal(size=len(free)).astype(np.float32)
        opinion = lambda where, potential=potential: Outputs(
            (), jnp.asarray(potential[where][None])
        )
        data = batch(
            terminated=jnp.asarray(ended[None], jnp.float32),
            teacher=opinion(cell),
            teacher_next=opinion(to),
        )
        shaped = paid(rewards.potential_shaping(gamma), reward[None].astype(np.float32), data)[0]
        assert np.abs(np.asarray(shaped) - reward).max() > 0.5
        np.testing.assert_array_equal(greedy(np.asarray(shaped, np.float64)), plain)


def test_shaping_needs_a_value_of_the_teacher():
    data = batch(teacher=Outputs((), ()), teacher_next=Outputs((), ()))
    with pytest.raises(UsageError, match="the teacher has no value head"):
        paid(rewards.potential_shaping(), data=data)


# --- Czarnecki et al. 2019, theorem 2 ------------------------------------------------------------

STATES, ACTIONS, HORIZON, GAMMA = 3, 2, 4, 0.9
OVER = STATES  # the outcome "the episode ends"


def trajectories(transition, pi):
    """Every whole trajectory from state 0: states, actions [H, N], terminated, alive [H, N], next
    state [H, N], probability [N].
    """
    rows = []
    for moves in itertools.product(
        itertools.product(range(ACTIONS), range(STATES + 1)), repeat=HORIZON
    ):
        state, probability, rest = 0, 1.0, []
        for t, (action, outcome) in enumerate(moves):
            if state == OVER:
                probability *= moves[t] == (0, OVER)  # what follows the end is written one way only
                rest.append((0, 0, 1.0, 0.0, 0))
                continue
            probability *= pi[state, action] * transition[state, action, outcome]
            last = outcome == OVER or t == HORIZON - 1
            rest.append((state, action, float(last), 1.0, 0 if outcome == OVER else outcome))
            state = outcome
        if probability > 0:
            rows.append((rest, probability))
    state, action, terminated, alive, following = np.moveaxis(
        np.array([rest for rest, _ in rows]), -1, 0
    ).swapaxes(1, 2)
    return (
        state.astype(int),
        action.astype(int),
        terminated,
        alive,
        following.astype(int),
        np.array([p for _, p in rows]),
    )


def exact_objective(z, transition, measure, teacher):
    """E sum_t gamma^t l(s_t) over the horizon, by the distribution of states."""
    pi, seen, total = jax.nn.softmax(z), jnp.eye(STATES)[0], 0.0
    cost = measure(Outputs(Categorical(z)), Outputs(Categorical(teacher)))
    for t in range(HORIZON):
        total = total + GAMMA**t * jnp.sum(seen * cost)
        seen = jnp.einsum("s,sa,sak->k", seen, pi, transition[..., :STATES])
    return total


def estimated_gradient(z, transition, measure, term, teacher, *, transforms):
    """The same from the library's parts, each trajectory as often as the student meets it."""
    state, action, terminated, alive, following, probability = trajectories(
        transition, np.asarray(jax.nn.softmax(z))
    )

    def out(logits, where):
        return Outputs(Categorical(jnp.asarray(np.asarray(logits)[where])))

    data = batch(
        reward=jnp.zeros(state.shape),
        terminated=jnp.asarray(terminated),
        action=jnp.asarray(action),
        teacher=out(teacher, state),
        acting_next=out(z, following),
        teacher_next=out(teacher, following),
    )
    reward = data.reward
    for transform in transforms:
        reward = paid(transform, reward, data)
    zero = jnp.zeros((HORIZON + 1, state.shape[1]))
    advantage, _ = returns.gae(GAMMA, 1.0).evaluate(reward, zero, zero[1:], data, CONTEXT)
    data = data._replace(advantage=advantage)
    weight = jnp.asarray(probability[None] * alive * GAMMA ** np.arange(HORIZON)[:, None])

    def loss(z):
        student = Outputs(Categorical(z[jnp.asarray(state)]))
        return jnp.sum(
            weight
            * (
                losses.policy_gradient().loss((), student, data, CONTEXT)
                + term.loss((), student, data, CONTEXT)
            )
        )

    assert abs(probability.sum() - 1) < 1e-12
    return jax.jit(jax.grad(loss))(z)


CROSS = lambda student, teacher: teacher.policy.cross_entropy(student.policy)
REVERSE = lambda student, teacher: student.policy.cross_entropy(teacher.policy)
NEGENTROPY = lambda student, teacher: -student.policy.entropy()


@pytest.mark.parametrize(
    "measure, term, lacking, others",
    [
        (CROSS, losses.cross_entropy(), CROSS, ()),
        (REVERSE, losses.reverse_cross_entropy(), REVERSE, ()),
        (
            lambda student, teacher: student.policy.kl(teacher.policy),
            losses.entropy(),
            NEGENTROPY,
            (rewards.teacher_reward(),),
        ),
    ],
    ids=["N-distill", "expected entropy regularised", "entropy regularised"],
)
def test_the_successor_reward_makes_distillation_a_gradient(measure, term, lacking, others):
    """Theorem 2 by enumeration in float64: lambda = 1, weights gamma^t, no normalisation, zero at
    the end. Without the reward it is no gradient, nor is `teacher_reward` with the entropy (E3).
    """
    rng = np.random.default_rng(0)
    transition = rng.dirichlet(np.ones(STATES + 1), size=(STATES, ACTIONS))
    with jax.enable_x64(True):
        z, teacher = (jnp.asarray(rng.normal(size=(STATES, ACTIONS))) for _ in range(2))
        exact = jax.jit(jax.grad(lambda z: exact_objective(z, transition, measure, teacher)))(z)
        reward = rewards.successor(lacking, gamma=GAMMA)
        ours, without = (
            estimated_gradient(z, transition, measure, term, teacher, transforms=transforms)
            for transforms in ((*others, reward), others)
        )
        assert exact.dtype == jnp.float64
    np.testing.assert_allclose(ours, exact, atol=1e-6)
    assert np.abs(without - exact).max() > 0.02


# --- in the learner ------------------------------------------------------------------------------


class Tell(nn.Module):
    """A teacher whose value is the observation's first number, so that the value of the true
    successor is known.
    """

    @nn.compact
    def __call__(self, obs):
        return nn.Dense(2)(obs), obs[..., 0]


def test_the_rollout_records_what_the_rewards_read(key):
    """CartPole cut after 5 steps: the potential is paid on the true successor, which `next_obs`
    shows.
    """
    env = jaxkd.envs.make("CartPole-v1", num_envs=4, max_steps=5)
    teacher, student = networks.feedforward(env, Tell()), networks.mlp(env, (4,), extra=("shape",))

    def off(student, batch):
        after = (1 - batch.terminated) * batch.next_obs[..., 0]
        return jnp.abs(batch.streams["shape"] - (0.9 * after - batch.obs[..., 0]))

    algorithm = jaxkd.distill(
        env,
        student,
        teacher,
        losses={
            "policy": losses.policy_gradient(),
            "kl": losses.cross_entropy(),
            "value": losses.td_mse(),
            "off": losses.watch(off),
        },
        rewards={
            "none": rewards.scale(0.0),
            "next": rewards.successor(
                lambda student, teacher: teacher.policy.cross_entropy(student.policy), gamma=0.9
            ),
            "said": rewards.teacher_reward(0.1),
            "bounds": rewards.clip(-10.0, 10.0),
            "shape": rewards.potential_shaping(0.9, stream="shape"),
        },
        returns={"": returns.gae(0.9, 1.0), "shape": returns.scale(0.0, returns.gae(0.9, 1.0))},
        unroll_length=8,
        num_minibatches=1,
    )
    _, metrics = jaxkd.run(algorithm, key, 2, teacher.init(key))
    chex.assert_tree_all_finite({k: v for k, v in metrics.items() if k != "return"})
    np.testing.assert_allclose(metrics["loss/off"], 0, atol=1e-6)
    assert (
        np.all(metrics["reward/none"] == 0)
        and np.all(metrics["reward/next"] < 0)
        and np.all(metrics["reward/shape"] != 0)
    )


def test_rewards_of_a_teacher_need_one():
    env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    with pytest.raises(UsageError, match="reward 'said' reads the teacher, but teacher=None"):
        jaxkd.ppo(
            env,
            networks.mlp(env, (2,)),
            rewards={"said": rewards.teacher_reward()},
            unroll_length=2,
            num_minibatches=1,
        )


# --- normalise before rewards vary ---------------------------------------------------------------


def normalised(reward, terminated, rollouts_before=0, enlarge=True):
    """The reward after `normalise(0.99)`, behind rollouts of zeros."""
    transform = rewards.normalise(0.99, enlarge=enlarge)
    data = batch(reward=reward, terminated=terminated)
    update = jax.jit(lambda reward, state: transform.update(reward, state, data, CONTEXT))
    state = transform.init(None, ((), data))
    for _ in range(rollouts_before):
        state = update(0 * reward, state)[1]
    return update(reward, state)[0]


@pytest.mark.parametrize("size", [0.01, 100.0])
def test_normalise_that_only_makes_rewards_smaller(size):
    reward = size * jax.random.normal(jax.random.key(0), (T, B))
    usual, smaller = (normalised(reward, jnp.zeros((T, B)), enlarge=e) for e in (True, False))
    assert (jnp.abs(usual) > jnp.abs(reward)).all() == (size < 1)
    np.testing.assert_array_equal(smaller, reward if size < 1 else usual)


def test_normalise_leaves_a_constant_return_alone():
    """Every episode one step long and worth the same: no variance, and no factor of 1e4, also where
    float32 rounds the mean.
    """
    for constant in (0.0, 1.0, 0.3, -700.0):
        np.testing.assert_allclose(
            normalised(jnp.full((T, B), constant), jnp.ones((T, B))), constant
        )


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 1e3])
def test_the_first_reward_is_at_most_the_root_of_the_steps_seen(size):
    """One reward among M steps of 0: the variance is about size^2 / M, so the reward becomes about
    sqrt(M); a tiny one less, by the 1e-8.
    """
    reward = jnp.zeros((T, B)).at[-1, 0].set(size)
    for before in (0, 9):
        bound = np.sqrt((before + 1) * T * B)
        out = normalised(reward, jnp.zeros((T, B)), before)[-1, 0]
        assert (0.9 * bound if size >= 1 else 0) < out < 1.1 * bound


def test_an_action_that_was_not_the_students_earns_nothing_from_the_teacher():
    weight = jnp.ones((T, B)).at[1, 1].set(0.0)
    spoilt = jnp.where(weight[..., None] > 0, V, jnp.nan)
    policies = [Outputs(Categorical(x)) for x in (spoilt, jnp.asarray(Z))]
    data = batch(
        teacher=policies[0], teacher_next=policies[0], acting_next=policies[1], weight=weight
    )
    for transform in (rewards.teacher_reward(), rewards.disagreement()):
        found = paid(transform, data=data)
        assert np.isfinite(found).all() and found[1, 1] == REWARD[1, 1]
        assert (jnp.abs(found - REWARD) > 0).sum() == T * B - 1
