"""What sequences need of losses: top k with a tail, the traps of sampled tokens, data sets."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import behavior, distill, envs, losses, memory, networks, returns, rewards, run
from jaxkd.base import Batch, Context, Discrete, Memory, Outputs, Policy, UsageError
from jaxkd.distributions import MASK, Categorical, TopK
from jaxkd.networks.module import Spec

V, SHAPE = 7, (5, 3)
RNG = np.random.default_rng(0)
OURS, THEIRS = (jnp.asarray(3 * RNG.normal(size=(*SHAPE, V)), jnp.float32) for _ in range(2))
CONTEXT = Context(jnp.int32(0), jnp.float32(0), (), jax.random.key(0))
EMPTY = Batch(*(None,) * 10)
DIVERGENCES = {
    "forward": losses.forward_kl(),
    "reverse": losses.reverse_kl(),
    "jsd": losses.jsd(0.3),
    "jsd normalised": losses.jsd(0.8, normalise=True),
    "skew": losses.skew_kl(0.1),
    "skew reverse": losses.skew_reverse_kl(0.1),
    "total variation": losses.total_variation(),
}
every = pytest.mark.parametrize("term", DIVERGENCES.values(), ids=DIVERGENCES)


def value(term, ours, theirs):
    batch = EMPTY._replace(teacher=Outputs(theirs))
    return jax.jit(term.loss)((), Outputs(Categorical(ours)), batch, CONTEXT)


# --- top k and a tail -------------------------------------------------------------------------


@every
def test_never_above_the_exact_divergence_and_equal_to_it_at_the_end(term):
    exact = np.asarray(value(term, OURS, Categorical(THEIRS)))
    found = [np.asarray(value(term, OURS, TopK.of(Categorical(THEIRS), k))) for k in range(1, V)]
    for less, more in zip(found, found[1:], strict=False):  # a finer look sees more
        assert np.all(less <= 1.000_002 * more + 1e-6)
    assert np.all(found[-1] <= 1.000_002 * exact + 1e-6) and np.mean(found[0]) < 0.98 * np.mean(
        exact
    )
    np.testing.assert_allclose(found[-1], exact, rtol=2e-5, atol=1e-6)


def test_top_k_by_hand():
    """In float64 numpy: the teacher's two best, and one outcome for the other five."""
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in np.float64([THEIRS, OURS]))
    best = np.argsort(-p, axis=-1)[..., :2]
    p2, q2 = (np.take_along_axis(x, best, -1) for x in (p, q))
    p3, q3 = (np.concatenate([x, 1 - x.sum(-1, keepdims=True)], -1) for x in (p2, q2))
    top = TopK.of(Categorical(THEIRS), 2)
    np.testing.assert_array_equal(top.action, best)
    forward, reverse = (p3 * np.log(p3 / q3)).sum(-1), (q3 * np.log(q3 / p3)).sum(-1)
    np.testing.assert_allclose(value(losses.forward_kl(), OURS, top), forward, rtol=1e-4)
    np.testing.assert_allclose(value(losses.reverse_kl(), OURS, top), reverse, rtol=1e-4)


@every
@pytest.mark.parametrize("k", [1, 3, 6])
def test_gradients_are_finite_where_a_probability_is_0(term, k):
    """Tokens that student or teacher mask, a teacher that is sure: no nan and no infinity."""
    theirs = THEIRS.at[..., :3].set(-jnp.inf).at[0].set(jnp.array([0.0] + [-jnp.inf] * 6))
    ours = OURS.at[..., 0].set(MASK).at[..., 6].set(-jnp.inf)
    slope = jax.grad(lambda ours: jnp.sum(value(term, ours, TopK.of(Categorical(theirs), k))))
    assert np.all(np.isfinite(slope(OURS))) and np.all(np.isfinite(slope(ours)))
    assert np.any(slope(OURS) != 0)


def linear(vocabulary=V, inputs=4):
    """Logits are a product: exact gradients by hand."""

    def say(params, carry, obs, reset):
        return carry, Outputs(Categorical(obs @ params["w"]))

    init = lambda key: {"w": jax.random.normal(key, (inputs, vocabulary))}
    return Policy(init, lambda num_envs: (), say, say)


def states(num_envs=8, vocabulary=V, length=3):
    """Episodes of `length` steps in random states."""
    draw = lambda key: jax.random.normal(key, (num_envs, 4))
    space = jax.ShapeDtypeStruct((4,), jnp.float32), Discrete(vocabulary)

    def step(key, time, action):
        obs, done = draw(key), jnp.float32(time == length - 1)
        reward = jnp.float32(action == 0)
        return (time + 1) % length, jaxkd.base.TimeStep(obs, obs, reward, done, 0 * done)

    reset = lambda key: (jnp.zeros(num_envs, jnp.int32), draw(key))
    return jaxkd.Env(reset, step, num_envs, *space, max_steps=length, truncates=False, name="s")


def test_a_learner_with_a_top_k_teacher(key):
    """Stored as k, and learnt from as well; the vocabularies and k are compared before."""
    env, student = states(), linear()
    teacher = networks.top_k(linear(), 3)
    keywords = dict(memory=memory.ring(2), optimizer=optax.adam(3e-2))
    kd = distill(env, student, teacher, losses={"kl": losses.forward_kl()}, **keywords)
    params = linear().init(jax.random.key(1))
    state, metrics = run(kd, key, 100, params)
    assert metrics["loss/kl"][-10:].mean() < 0.3 * metrics["loss/kl"][:10].mean()
    assert {x.shape[-1] for x in jax.tree.leaves(state.memory.actors.teacher.policy)} == {3, 32}
    with pytest.raises(UsageError, match="teacher expects 9 actions; 's' gives .* and 7 actions"):
        distill(env, student, networks.top_k(linear(9), 3), losses={"kl": losses.forward_kl()})
    with pytest.raises(UsageError, match="k = 7 of 7 actions are no part of them. Take k <= 6"):
        distill(env, student, networks.top_k(linear(), 7), losses={"kl": losses.forward_kl()})
    made_for = Spec(env.obs_spec, env.action_space)
    with pytest.raises(UsageError, match="k = 20 of 7 actions"):
        networks.top_k(networks.mlp(made_for, (4,)), 20)
    warm = {"kl": losses.forward_kl(2.0)}
    with pytest.raises(UsageError, match="the top k of a policy have no temperature"):
        distill(env, student, teacher, losses=warm)


# --- sampled tokens -----------------------------------------------------------------------------


def expectation(made):
    """E over the student's own actions of the gradient in its logits of `made(action) [...]`."""
    probability = jax.nn.softmax(OURS)
    found = 0.0
    for action in range(V):
        chosen = jnp.full(SHAPE, action)
        slope = jax.vmap(jax.grad(lambda z, a: made(z, a)))
        flat = slope(OURS.reshape(-1, V), chosen.reshape(-1)).reshape(OURS.shape)
        found = found + probability[..., action, None] * flat
    return found


@pytest.mark.parametrize("baseline", [False, True])
def test_the_log_ratio_is_a_reward_and_never_differentiated(baseline):
    """As a reward its policy gradient is that of the reverse KL; its own gradient knows no teacher.

    Every token is tried, so that expectations are exact.
    """
    exact = jax.grad(lambda z: jnp.sum(Categorical(z).kl(Categorical(THEIRS))))(OURS)
    acting, teacher = Outputs(Categorical(OURS)), Outputs(Categorical(THEIRS))
    transform = rewards.teacher_log_ratio(baseline=baseline)

    def gradient(action):
        batch = EMPTY._replace(
            action=action, acting=acting, teacher=teacher, reward=jnp.zeros(SHAPE), weight=()
        )
        paid, _ = transform.update(batch.reward, (), batch, CONTEXT)
        gain, _ = returns.immediate().evaluate(paid, (), (), batch, CONTEXT)
        batch = batch._replace(advantage=gain, weight=jnp.ones(SHAPE))
        term = losses.policy_gradient()
        loss = lambda z: jnp.sum(term.loss((), Outputs(Categorical(z)), batch, CONTEXT))
        return jax.grad(loss)(OURS)

    share = jax.nn.softmax(OURS)
    found = sum(share[..., a, None] * gradient(jnp.full(SHAPE, a)) for a in range(V))
    np.testing.assert_allclose(found, exact, atol=2e-6)
    k1 = lambda z, a: jax.nn.log_softmax(z)[a]  # log q - log p, whose second part has no gradient
    np.testing.assert_allclose(expectation(k1), 0.0, atol=1e-6)


def test_the_temperature_of_sampling_is_in_the_log_probabilities(key):
    """`networks.temper` of the student: what it says is what it draws from; behaviour's is not."""
    env, student = states(4000, length=1), networks.temper(linear(), 0.5)
    record = Memory(lambda spec: (), lambda _, batch: batch, lambda key, _, batch: batch)
    watched = {"pg": losses.scale(0.0, losses.ppo_clip(normalise=False))}
    keywords = dict(losses=watched, memory=record, returns=returns.immediate(), unroll_length=1)
    kd = distill(env, student, optimizer=optax.sgd(0.0), num_minibatches=1, **keywords)
    batch = jax.jit(lambda key: kd.step(kd.init(key))[0].memory)(key)
    expected = jnp.mean(jnp.exp(jax.nn.log_softmax(batch.acting.policy.logits)), axis=(0, 1))
    drawn = jnp.mean(jax.nn.one_hot(batch.action, V), axis=(0, 1))
    np.testing.assert_allclose(drawn, expected, atol=0.03)
    sharper = jax.nn.softmax(0.5 * batch.acting.policy.logits).mean((0, 1))
    assert np.max(np.abs(sharper - drawn)) > 0.01  # at temperature 1 it would be another


def test_a_padded_batch_equals_one_without_padding():
    """Rows of weight 0 behind answers of different lengths change no loss and no gradient."""
    student, terms = (
        linear(),
        {
            "kl": losses.forward_kl(),
            "gspo": losses.ppo_clip(normalise=False, sequence=True),
            "nll": losses.imitation(),
            "ppo": losses.ppo_clip(),
        },
    )
    from jaxkd.optimize import total

    params, L, N = student.init(jax.random.key(0)), 6, 4
    obs = jnp.asarray(RNG.normal(size=(L, N, 4)), jnp.float32)
    action = jnp.asarray(RNG.integers(0, V, (L, N)), jnp.int32)
    other = Outputs(Categorical(jnp.asarray(RNG.normal(size=(L, N, V)), jnp.float32)))
    gain = jnp.asarray(RNG.normal(size=(L, N)), jnp.float32)
    zeros = jnp.zeros((L, N))
    batch = Batch(obs, (), action, zeros, zeros, zeros, zeros, (), other, other)
    batch = batch._replace(advantage=gain, weight=jnp.ones((L, N)))

    def loss(params, batch):
        out = student.unroll(params, (), batch.obs, batch.reset)[1]
        return total(terms, dict.fromkeys(terms), out, batch, CONTEXT)[0]

    longer = lambda x: jnp.concatenate([x, jnp.full((3, *x.shape[1:]), 7, x.dtype)])
    padded = jax.tree.map(longer, batch)._replace(weight=jnp.pad(batch.weight, ((0, 3), (0, 0))))
    both = jax.value_and_grad(loss)
    (one, slope), (two, same) = both(params, batch), both(params, padded)
    np.testing.assert_allclose(one, two, rtol=1e-6)
    np.testing.assert_allclose(slope["w"], same["w"], rtol=1e-5, atol=1e-7)


# --- groups ---------------------------------------------------------------------------------------


def test_gspo_by_hand():
    """One ratio a sequence, (prod of the rows' ratios)^(1 / their number), clipped as one."""
    advantage = jnp.asarray(RNG.normal(size=SHAPE), jnp.float32)
    action = jnp.asarray(RNG.integers(0, V, SHAPE))
    weight = jnp.ones(SHAPE).at[3:, 0].set(0.0)
    acting = Outputs(Categorical(OURS + 0.1 * THEIRS))
    batch = EMPTY._replace(action=action, acting=acting, advantage=advantage, weight=weight)
    term = losses.ppo_clip(0.05, epsilon_high=0.1, normalise=False, sequence=True)
    found = np.asarray(term.loss((), Outputs(Categorical(OURS)), batch, CONTEXT))
    log = lambda z: np.take_along_axis(
        np.asarray(jax.nn.log_softmax(z)), np.asarray(action)[..., None], -1
    )[..., 0]
    ratio = log(OURS) - log(OURS + 0.1 * THEIRS)
    for n in range(SHAPE[1]):
        rows = 3 if n == 0 else SHAPE[0]
        s = np.exp(ratio[:rows, n].mean())
        a = np.asarray(advantage[:rows, n])
        np.testing.assert_allclose(
            found[:rows, n], -np.minimum(s * a, np.clip(s, 0.95, 1.1) * a), rtol=1e-5
        )
    same = batch._replace(acting=Outputs(Categorical(OURS)))
    slope = lambda term: jax.grad(
        lambda z: jnp.sum(weight * term.loss((), Outputs(Categorical(z)), same, CONTEXT))
    )(OURS)
    level = jnp.broadcast_to(advantage[:1], SHAPE)  # on-policy, one advantage a sequence: REINFORCE
    same = same._replace(advantage=level)
    np.testing.assert_allclose(slope(term), slope(losses.policy_gradient()), atol=1e-6)


def test_groups_that_do_not_differ_are_dropped(key):
    """DAPO: their rows weigh 0, the mean is over the others; the share that counts is reported."""
    reward = jnp.zeros((3, 6)).at[2].set(jnp.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.0]))
    reset = jnp.zeros((3, 6)).at[0].set(1.0)
    batch = EMPTY._replace(reset=reset, weight=())
    made = returns.group_relative(2, standardise=False, rows="all", keep_equal=False)
    gain, _, weight = made.evaluate(reward, (), (), batch, CONTEXT)
    np.testing.assert_array_equal(weight, [[1, 1, 0, 0, 0, 0]] * 3)
    np.testing.assert_array_equal(gain[0], [0.5, -0.5, 0, 0, 0, 0])


@pytest.mark.slow
def test_the_share_of_groups_that_differ_is_reported(key):
    env = envs.make("addition-2", num_envs=16, group_size=4)
    student = networks.transformer(env, 1, 8, 2, context=env.max_steps)
    keywords = dict(returns=returns.group_relative(4, rows="all", keep_equal=False))
    terms = {"policy": losses.ppo_clip(0.2, epsilon_high=0.28, normalise=False)}
    kd = distill(env, student, losses=terms, unroll_length=env.max_steps, **keywords)
    metrics = run(kd, key, 2)[1]
    assert np.all(metrics["counted"] < 0.3)  # a beginner's groups are all wrong


# --- data sets ------------------------------------------------------------------------------------


def test_a_data_set_is_learnt_from(key):
    """Supervised: right answers of addition; what is played is not looked at."""
    from jaxkd.envs import tasks, tokens

    env = envs.make("sorting-6", num_envs=32)
    student = networks.transformer(env, 1, 16, 2, context=env.max_steps)
    rows = tokens.demonstrations(tasks.sorting(6), jax.random.key(1), 256)
    adam = optax.adam(1e-2)
    terms = {"nll": losses.imitation()}
    keywords = dict(losses=terms, unroll_length=env.max_steps, optimizer=adam)
    kd = distill(env, student, memory=memory.dataset(**rows), num_minibatches=1, **keywords)
    _, metrics = run(kd, key, 60)
    assert 2.2 < metrics["loss/nll"][0] < 2.8 and metrics["loss/nll"][-1] < 2.1
    with pytest.raises(UsageError, match="a loss reads action, which the data set does not hold"):
        less = memory.dataset(obs=rows["obs"], reset=rows["reset"])
        run(distill(env, student, memory=less, **keywords), key, 1)
    short = keywords | dict(unroll_length=6)
    with pytest.raises(UsageError, match=r"Take unroll_length=13, and data of this environment"):
        run(distill(env, student, memory=memory.dataset(**rows), **short), key, 1)


def test_labels_of_a_teacher_in_a_data_set(key):
    """Its outputs, asked for once; of them what the loss reads."""
    env, student = states(), linear()
    obs = jnp.asarray(RNG.normal(size=(4, 50, 4)), jnp.float32)
    reset = jnp.ones((4, 50))
    expert = linear().init(jax.random.key(1))
    labels = networks.top_k(linear(), 5).unroll(expert, (), obs, reset)[1]
    data = memory.dataset(obs=obs, reset=reset, teacher=labels)
    keywords = dict(losses={"kl": losses.reverse_kl()}, optimizer=optax.adam(3e-2))
    teacher = networks.top_k(linear(), 5)
    kd = distill(env, student, teacher, memory=data, unroll_length=4, **keywords)
    metrics = run(kd, key, 100, expert)[1]
    assert metrics["loss/kl"][-10:].mean() < 0.3 * metrics["loss/kl"][:10].mean()


@pytest.mark.parametrize("every", ["step", "rollout"])
def test_sequences_are_mixed_whole(every, key):
    """Half of them are the teacher's, from their first row to their last, or half of the rows."""
    context = CONTEXT._replace(key=key)
    act = behavior.mixture(0.5, every=every).act
    sure = 50 * jnp.eye(V)
    say = lambda action: Outputs(Categorical(jnp.tile(sure[action], (400, 1))))
    rows = [act(jax.random.fold_in(key, t), say(1), say(2), context) for t in range(5)]
    teachers = np.stack(rows) == 2
    assert 0.4 < teachers.mean() < 0.6
    whole = np.all(teachers == teachers[:1], axis=0)
    assert np.all(whole) if every == "rollout" else whole.mean() < 0.2
    with pytest.raises(UsageError, match="every must be 'step' or 'rollout', got 'epoch'"):
        behavior.mixture(0.5, every="epoch")
