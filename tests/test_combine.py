"""A policy an environment, mixtures, and what of a policy is trained."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import behavior, distill, envs, evaluate, lanes, networks, rollout, seeds, successors
from jaxkd.base import Box, Discrete, Memory, Outputs, Policy, UsageError
from jaxkd.description import Spec
from jaxkd.distributions import Categorical, Normal

VECTOR = jax.ShapeDtypeStruct((4,), jnp.float32)
SPEC, CONTINUOUS = Spec(VECTOR, Discrete(2)), Spec(VECTOR, Box((2,)))
B, T = 3, 8
RECORD = Memory(
    init=lambda spec: (), add=lambda buffer, batch: batch, sample=lambda key, buffer, batch: batch
)
INSIDE = {
    "mlp": networks.mlp(SPEC, (5,)),
    "normalised": networks.mlp(SPEC, (5,), normalise=True),
    "lstm": networks.lstm(SPEC, (4,)),
}
each_inside = pytest.mark.parametrize("name", INSIDE)


def weights(policy, seed=0):
    """Random params without an initialisation to compile; positive, because variances are."""
    rng = np.random.default_rng(seed)
    spec = jax.eval_shape(policy.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.1, 1, x.shape), x.dtype), spec)


def rows(tree, *index):
    return jax.tree.map(lambda x: x[index], tree)


def assert_near(one, other, atol=1e-5):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5), one, other)


def alone(policy, params, env, obs, reset):
    """[T, ...] of one environment, by its own params in a batch of one."""
    own = jax.tree.map(lambda x: x[env], params)
    return jax.jit(policy.unroll)(own, policy.initial_carry(1), obs[:, None], reset[:, None])[1]


# --- a policy an environment --------------------------------------------------------------------


@each_inside
def test_per_env_is_a_loop_over_environments(name, key):
    """step and unroll, resets in the middle; the answers differ from environment to environment."""
    inside = INSIDE[name]
    policy = networks.per_env(inside, B)
    params = weights(policy)
    obs = jax.random.normal(key, (T, B, 4))
    reset = jnp.zeros((T, B)).at[0].set(1.0).at[3, 1].set(1.0)
    carry, out = jax.jit(policy.unroll)(params, policy.initial_carry(B), obs, reset)
    stepped, step = policy.initial_carry(B), jax.jit(policy.step)
    for t in range(T):
        stepped, one = step(params, stepped, obs[t], reset[t])
        assert_near(one, rows(out, t))
    assert_near(stepped, carry)
    for env in range(B):
        expected = alone(inside, params, env, obs[:, env], reset[:, env])
        assert_near(jax.tree.map(lambda x, env=env: x[:, env : env + 1], out), expected)
    same = jnp.broadcast_to(obs[:, :1], obs.shape)
    logits = policy.unroll(params, policy.initial_carry(B), same, reset)[1].policy.logits
    assert abs(logits[0, 0] - logits[0, 1]).max() > 1e-3


@each_inside
def test_per_env_answers_rows_in_any_order(name, key):
    """Flattened as successors are, M rows of B, and shuffled: the carry says whose a row is."""
    policy = networks.per_env(INSIDE[name], B)
    params, obs = weights(policy), jax.random.normal(key, (2, B, 4))
    one = [policy.step(params, policy.initial_carry(B), obs[m], jnp.ones(B))[1] for m in range(2)]
    stacked = jax.tree.map(lambda *x: jnp.concatenate(x), *one)
    flat = policy.step(params, policy.initial_carry(2 * B), obs.reshape(-1, 4), jnp.ones(2 * B))[1]
    assert_near(flat, stacked)
    order = jnp.array([4, 1, 5, 0])
    carry = rows(policy.initial_carry(2 * B), order)
    some = policy.step(params, carry, obs.reshape(-1, 4)[order], jnp.ones(4))[1]
    assert_near(some, rows(stacked, order))


def test_per_env_draws_and_observes_for_each(key):
    inside = INSIDE["normalised"]
    policy = networks.per_env(inside, B)
    params = policy.init(key)
    assert params["statistics"].mean.shape == (B, 4)
    kernel = params["policy"]["params"]["policy"]["kernel"]
    assert np.any(kernel[0] != kernel[1])
    seen = policy.observe(params, jnp.arange(2.0 * B * 4).reshape(2, B, 4))["statistics"]
    for env in range(B):
        own = inside.observe(rows(params, env), jnp.arange(2.0 * B * 4).reshape(2, B, 4)[:, [env]])
        assert_near(rows(seen, env), own["statistics"])
    assert not any(jax.tree.leaves(policy.trainable(params)["statistics"]))
    assert all(jax.tree.leaves(policy.trainable(params)["policy"]))


@each_inside
def test_per_env_teachers_in_the_learner(name):
    """One update with cut-off episodes, of the second of two lanes, rows of all environments mixed.

    Labels, and opinions at true successors, of each environment's own teacher alone.
    """
    env = envs.make("CartPole-v1", B, max_steps=3)
    inside = INSIDE[name]
    teacher, student = networks.per_env(inside, B), networks.feedforward(env, nn.Dense(2))
    params = weights(teacher)

    def loss(student, batch):
        ahead = jnp.abs(batch.teacher_next.value) + 0 * batch.next_obs.sum(-1)
        return batch.teacher.policy.kl(student.policy) + ahead * (1 + batch.truncated)

    algorithm = distill(
        env,
        student,
        teacher,
        losses={"loss": loss},
        memory=RECORD,
        unroll_length=6,
        num_minibatches=2,
        shuffle="full",
        optimizer=optax.sgd(0.0),
    )
    many = lanes(algorithm)
    state = jax.jit(many.init)(seeds(0, 2))
    state, (after, metrics) = rows((state, jax.jit(many.step)(state, params)), 1)
    batch = after.memory
    assert batch.truncated.sum() >= 2 * B  # at t = 2 and 5
    ours = student.unroll(state.params, (), batch.obs, batch.reset)[1]
    total = 0.0
    for b in range(B):
        out = alone(inside, params, b, batch.obs[:, b], batch.reset[:, b])
        assert_near(rows(batch.teacher.policy.logits, slice(None), b), out.policy.logits[:, 0])
        for t in range(6):  # the history of each successor, then the successor itself
            start = t - int(np.argmax(np.asarray(batch.reset[: t + 1, b])[::-1]))
            history = jnp.concatenate([batch.obs[start : t + 1, b], batch.next_obs[t : t + 1, b]])
            reset = jnp.zeros(len(history)).at[0].set(1.0)
            ahead = alone(inside, params, b, history, reset).value[-1, 0]
            if batch.terminated[t, b] == 0:
                np.testing.assert_allclose(batch.teacher_next.value[t, b], ahead, atol=1e-5)
        kl = out.policy.kl(Categorical(ours.policy.logits[:, b : b + 1]))[:, 0]
        weight = 1 + batch.truncated[:, b]
        total += jnp.sum(kl + jnp.abs(batch.teacher_next.value[:, b]) * weight)
    np.testing.assert_allclose(metrics["loss/loss"], total / (6 * B), rtol=1e-5)


@each_inside
def test_a_carry_that_never_changes_is_no_memory(name):
    """Only a teacher that remembers has to walk along in the scan for its successors' sake."""
    policy, env = networks.per_env(INSIDE[name], B), envs.make("CartPole-v1", B)
    given = rollout.Rollout(env, policy, policy, behavior.student_acts(), T, T)
    found = []

    def look(params, key):
        actors = rollout.start(given, key)
        found.append(successors.remembers(policy, params, actors.teacher_carry, actors))

    jax.eval_shape(look, weights(policy), jax.random.key(0))
    assert found == [name == "lstm"]


@pytest.mark.parametrize("shuffle", ["env", "full"])
def test_a_per_env_student_is_itself_in_shuffled_minibatches(shuffle, key):
    """In short sequences, cut and shuffled, every row is still answered by its own params."""
    num_envs = 4
    env = envs.make("CartPole-v1", num_envs, max_steps=3)
    student = networks.per_env(networks.mlp(env, (6,)), num_envs)

    def apart(student, batch):
        return abs(student.value - batch.acting.value)

    algorithm = distill(
        env,
        student,
        losses={"apart": apart},
        unroll_length=8,
        sequence_length=2,
        num_minibatches=2,
        shuffle=shuffle,
        optimizer=optax.sgd(0.0),
    )
    state = jax.jit(algorithm.init)(key)
    state = state._replace(params=weights(student))
    _, metrics = jax.jit(algorithm.step)(state)
    assert metrics["loss/apart"] < 1e-6


def test_per_env_counts():
    policy = networks.per_env(INSIDE["mlp"], B)
    np.testing.assert_array_equal(policy.initial_carry(2)["env"], [0, 1])  # of the first ones
    np.testing.assert_array_equal(policy.initial_carry(6)["env"], [0, 1, 2, 0, 1, 2])
    with pytest.raises(UsageError, match="3 environments, which do not divide 7"):
        policy.initial_carry(7)
    with pytest.raises(UsageError, match="num_envs must be a positive int"):
        networks.per_env(INSIDE["mlp"], 0)


def test_per_env_alone(key):
    env = envs.make("CartPole-v1", B, max_steps=5)
    policy = networks.per_env(networks.mlp(env, (4,)), B)
    played = evaluate(env, policy, weights(policy), key, num_episodes=B)
    assert played.returns.shape == (B,) and np.all(played.lengths > 0)


# --- mixtures -----------------------------------------------------------------------------------


def fixed(record, value=()):
    """A policy that always says the same; its params scale its value."""

    def step(params, carry, obs, reset):
        said = jax.tree.map(lambda x: jnp.broadcast_to(x, (*reset.shape, *x.shape)), record)
        return carry, Outputs(said, value if value == () else value * params * jnp.ones_like(reset))

    return Policy(lambda key: jnp.ones(()), lambda num_envs: (), step, step)


def probabilities(*p):
    return Categorical(jnp.log(jnp.array(p)))


def said(policy, lead=(2,)):
    params = policy.init(jax.random.key(0))
    call = policy.step if len(lead) == 1 else policy.unroll
    carry = policy.initial_carry(lead[-1])
    return call(params, carry, jnp.ones((*lead, 4)), jnp.ones(lead))[1]


@pytest.mark.parametrize("lead", [(2,), (3, 2)], ids=["step", "unroll"])
def test_a_mixture_of_categoricals_by_hand(lead):
    """3/4 of (.5, .5, 0) and 1/4 of (.1, .1, .8): (.4, .4, .2).

    Logits of other sizes are probabilities.
    """
    shifted = Categorical(probabilities(0.1, 0.1, 0.8).logits + 5.0)
    both = [fixed(probabilities(0.5, 0.5, 1e-30), 4.0), fixed(shifted, 8.0)]
    out = said(networks.mixture(both, (3, 1)), lead)
    np.testing.assert_allclose(
        jnp.exp(out.policy.logits), np.full((*lead, 3), [0.4, 0.4, 0.2]), rtol=1e-5
    )
    np.testing.assert_allclose(out.value, np.full(lead, 5.0))
    alone = said(networks.mixture(both, (1.0, 0.0)), lead)
    np.testing.assert_allclose(jnp.exp(alone.policy.logits[..., 0]), 0.5, rtol=1e-6)


@pytest.mark.parametrize("mask", [-1e9, -jnp.inf])
def test_what_all_mask_stays_masked_in_a_mixture(mask):
    """With -inf the gradient was nan, in every logit."""

    def entropy(logits):
        both = [fixed(Categorical(logits)), fixed(Categorical(jnp.array([0.0, 2.0, mask])))]
        return said(networks.mixture(both, (0.5, 0.5))).policy.entropy()[0]

    value, slope = jax.value_and_grad(entropy)(jnp.array([0.0, 1.0, mask]))
    p = (1 / (1 + np.exp(1)) + 1 / (1 + np.exp(2))) / 2
    np.testing.assert_allclose(value, -p * np.log(p) - (1 - p) * np.log(1 - p), rtol=1e-6)
    assert np.isfinite(slope).all() and slope[1] != 0 and slope[2] == 0


def test_a_mixture_of_normals_by_hand():
    """Half N(0, 1), half N(2, 3^2): mean 1, variance (1 + 9) / 2 + 1 = 6."""
    one = Normal(jnp.array([0.0, 5.0]), jnp.zeros(2))
    two = Normal(jnp.array([2.0, 5.0]), jnp.log(jnp.array([3.0, 1.0])))
    out = said(networks.mixture([fixed(one), fixed(two)], (0.5, 0.5)))
    np.testing.assert_allclose(out.policy.mean, [[1.0, 5.0]] * 2)
    np.testing.assert_allclose(jnp.exp(2 * out.policy.log_std), [[6.0, 1.0]] * 2, rtol=1e-6)
    assert out.value == ()


def test_a_function_weighs_each_row(key):
    """Also recurrent ones; its gradient, and that of a policy of weight 0, is finite."""
    both = [networks.mlp(SPEC, (4,)), networks.lstm(SPEC, (4,))]

    def region(obs):
        first = obs[..., 0] > 0
        return jnp.stack([first, ~first], axis=-1)

    policy = networks.mixture(both, region)
    params, obs = weights(policy), jnp.array([[1.0, 2, 3, 4], [-1, 2, 3, 4]])
    carry, out = policy.step(params, policy.initial_carry(2), obs, jnp.ones(2))
    for row in range(2):
        expected = both[row].step(params[row], both[row].initial_carry(2), obs, jnp.ones(2))[1]
        log_probs = jax.nn.log_softmax(expected.policy.logits)
        np.testing.assert_allclose(out.policy.logits[row], log_probs[row], atol=1e-6)
        np.testing.assert_allclose(out.value[row], expected.value[row], atol=1e-6)
    unrolled = policy.unroll(params, policy.initial_carry(2), obs[None], jnp.ones((1, 2)))
    assert_near((unrolled[0], rows(unrolled[1], 0)), (carry, out))

    def score(params):
        return policy.step(params, policy.initial_carry(2), obs, jnp.ones(2))[1].policy.logits[0, 0]

    gradient = jax.grad(score)(params)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient))
    assert all(not np.any(x) for x in jax.tree.leaves(gradient[1]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: networks.mixture([], ()), "at least one policy"),
        (lambda: networks.mixture([INSIDE["mlp"]], (1, 2)), "1 policies, but 2 weights"),
        (lambda: networks.mixture([INSIDE["mlp"]] * 2, (1, -2)), "weights must be in"),
        (lambda: networks.mixture([INSIDE["mlp"]] * 2, (0, 0)), "are all 0"),
        (lambda: networks.mixture([1], (1,)), "policy 0 must be a Policy"),
        (
            lambda: said(networks.mixture([INSIDE["mlp"]], lambda obs: jnp.ones((2, 3)))),
            r"needs weights \[..., 1\], got \(2, 3\)",
        ),
        (
            lambda: said(networks.mixture([INSIDE["mlp"], networks.mlp(CONTINUOUS, (3,))], (1, 1))),
            "mixes Categoricals, or Normals, got Categorical, Normal",
        ),
    ],
)
def test_mixtures_that_are_refused(make, words):
    with pytest.raises(UsageError, match=words):
        make()


# --- what is trained ----------------------------------------------------------------------------


class Named(nn.Module):
    """A layer that its user calls "statistics", and running averages."""

    use_running_average: bool = True

    @nn.compact
    def __call__(self, obs):
        obs = nn.BatchNorm(use_running_average=self.use_running_average)(obs)
        return nn.Dense(2, name="statistics")(obs)


def frozen(policy):
    """Paths of what is not trained."""
    params = jax.eval_shape(policy.init, jax.random.key(0))
    marks = policy.trainable(params)
    assert jax.tree.structure(marks) == jax.tree.structure(params)
    leaves = jax.tree_util.tree_flatten_with_path(marks)[0]
    return {jax.tree_util.keystr(path, simple=True, separator=".") for path, x in leaves if not x}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (networks.mlp(SPEC, (3,)), ""),
        (networks.lstm(SPEC, (3,), normalise=True), "statistics."),
        (
            networks.mlp(Spec({"a": VECTOR}, Discrete(2)), (3,), select="a", normalise=True),
            "statistics.",
        ),
        (networks.temper(networks.q(networks.mlp(SPEC, (3,), normalise=True)), 2.0), "statistics."),
        (networks.noisy(networks.mlp(SPEC, (3,)), 0.1), "seed"),
        (networks.noisy(networks.mlp(SPEC, (3,), normalise=True), 0.1), "seed policy.statistics."),
        (networks.mixture([networks.mlp(SPEC, (3,), normalise=True)], (1,)), "0.statistics."),
        (networks.per_env(networks.mlp(SPEC, (3,), normalise=True), 2), "statistics."),
        (networks.feedforward(SPEC, Named()), "batch_stats."),
        (networks.feedforward(SPEC, Named(), normalise=True), "statistics. policy.batch_stats."),
    ],
)
def test_a_policy_says_what_is_not_trained(policy, expected):
    """A10: whatever a layer is called; through every wrapper."""
    found = frozen(policy)
    prefixes = tuple(expected.split())
    assert all(path.startswith(prefixes) for path in found) if prefixes else not found
    assert all(any(path.startswith(prefix) for path in found) for prefix in prefixes)


def test_noise_is_on_what_is_trained(key):
    """A layer called "statistics" gets noise, running averages get none."""
    policy = networks.noisy(networks.feedforward(SPEC, Named()), 0.5)
    plain = networks.feedforward(SPEC, Named())
    params = policy.init(key)
    zero = jax.tree.map(jnp.zeros_like, params["policy"]["params"]["statistics"])
    blank = params["policy"] | {"params": params["policy"]["params"] | {"statistics": zero}}
    obs = jnp.ones((2, 4))
    noisy = policy.step(params | {"policy": blank}, policy.initial_carry(2), obs, jnp.ones(2))[1]
    assert not np.any(plain.step(blank, (), obs, jnp.ones(2))[1].policy.logits)
    assert np.all(noisy.policy.logits)


@pytest.mark.parametrize("module", [Named(False), nn.Dropout(0.5, deterministic=False)])
def test_modules_that_need_more_are_refused(module):
    """B5, A13: the cause is said, and what to do."""
    policy = networks.feedforward(SPEC, module)
    with pytest.raises(UsageError, match="use_running_average=True"):
        jax.eval_shape(
            lambda obs: policy.step(policy.init(jax.random.key(0)), (), obs, jnp.ones(2)),
            jax.ShapeDtypeStruct((2, 4), jnp.float32),
        )
