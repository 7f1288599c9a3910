"""Networks: shapes, parameter counts, the banded convolution, observations of every kind, wrappers, descriptions."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import actor_size, distill, envs, evaluate, losses, moments, networks, run
from jaxkd.base import Box, Discrete, Outputs, UsageError
from jaxkd.distributions import Categorical, Normal
from jaxkd.networks.cnn import banded
from jaxkd.networks.module import Spec

F32 = jnp.float32
jit = partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


def shape(*sizes, dtype=F32):
    return jax.ShapeDtypeStruct(sizes, dtype)


VECTOR, GRID = (
    Spec(shape(4), Discrete(2)),
    Spec(shape(10, 10, 4, dtype=bool), Discrete(3)),
)  # CartPole, Breakout
REACH = Spec({"b": shape(2, 3), "a": shape(dtype=jnp.int32)}, Box((2,)))


def parameters(policy):
    return jax.eval_shape(policy.init, jax.random.key(0))


def weights(policy, scale=0.3):
    """Random params by numpy: no compilation of an initialisation; statistics of nothing."""
    rng, shapes = np.random.default_rng(0), parameters(policy)
    drawn = jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape), x.dtype), shapes)
    return (
        drawn | {"statistics": moments.empty(shapes["statistics"].mean)}
        if "statistics" in drawn
        else drawn
    )


def size(policy):
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(parameters(policy)))


def outputs(policy, spec, lead=(5, 7)):
    """What `unroll` returns for observations [*lead, ...], by shapes alone."""
    obs = jax.tree.map(lambda x: shape(*lead, *x.shape, dtype=x.dtype), spec.obs_spec)
    return jax.eval_shape(
        lambda params, obs: policy.unroll(params, (), obs, jnp.ones(lead))[1],
        parameters(policy),
        obs,
    )


# --- counts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "spec", "actor", "total"),
    [
        (networks.mlp(VECTOR, (64, 64), separate=True), VECTOR, 4610, 2 * 4480 + 130 + 65),
        (networks.mlp(VECTOR, (64, 64)), VECTOR, 4610, 4480 + 130 + 65),
        (networks.mlp(VECTOR, 44), VECTOR, 310, 220 + 90 + 45),
        (
            networks.mlp(VECTOR, (8,), extra=("rnd",), layer_norm=True),
            VECTOR,
            74,
            40 + 16 + 18 + 9 + 9,
        ),
        (networks.mlp(VECTOR, (8,), normalise=True), VECTOR, 58, 40 + 18 + 9 + 9),
        (networks.cnn(GRID), GRID, 132_179, 132_179 + 129),
        (networks.cnn(GRID, (4,), (32,)), GRID, 148 + 8224 + 99, 148 + 8224 + 99 + 33),
        (
            networks.mlp(REACH, (8,)),
            REACH,
            64 + 18 + 2,
            64 + 18 + 2 + 9,
        ),  # 7 inputs, 2 means, 2 log-stds
    ],
    ids=[
        "teacher",
        "shared",
        "student",
        "heads",
        "statistics",
        "breakout",
        "small-cnn",
        "continuous",
    ],
)
def test_numbers_of_parameters(policy, spec, actor, total):
    """The actor is what has to be deployed: no value head, no value torso, no statistics."""
    assert size(policy) == total
    assert actor_size(policy, parameters(policy), spec.obs_spec) == actor


# --- shapes and values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [lambda s: networks.mlp(s, (8, 6)), lambda s: networks.mlp(s, (6,), normalise=True)],
    ids=["plain", "normalised"],
)
@pytest.mark.parametrize("spec", [VECTOR, GRID, REACH], ids=["vector", "grid", "dict"])
def test_mlp_shapes(make, spec):
    out = outputs(make(spec), spec)
    assert out.value == shape(5, 7) and out.features.shape == (5, 7, 6)
    assert {x.shape[:2] for x in out.extra.values()} == {(5, 7)} and set(out.extra) <= {
        "hidden_0",
        "hidden_1",
    }
    if isinstance(spec.action_space, Discrete):
        assert isinstance(out.policy, Categorical) and out.policy.logits == shape(
            5, 7, spec.action_space.n
        )
    else:
        assert isinstance(out.policy, Normal) and out.policy.mean == out.policy.log_std == shape(
            5, 7, 2
        )


def test_cnn_shapes_and_dtypes():
    for spec in (GRID, GRID._replace(obs_spec=shape(10, 10, 4, dtype=jnp.int8))):
        out = outputs(networks.cnn(spec, (4, 6), (9, 8), separate=True, extra=("rnd",)), spec)
        assert (
            out.policy.logits == shape(5, 7, 3)
            and out.value == out.extra["rnd"] == shape(5, 7)
            and out.features.shape == (5, 7, 8)
        )


@pytest.mark.parametrize(
    "make",
    [
        lambda d: networks.mlp(VECTOR, (8,), dtype=d),
        lambda d: networks.cnn(GRID, (2,), (8,), dtype=d),
    ],
    ids=["mlp", "cnn"],
)
def test_bfloat16_computes_small_and_answers_in_float32(make):
    policy, spec = make(jnp.bfloat16), VECTOR if make(F32).description[0] == "mlp" else GRID
    assert {x.dtype for x in jax.tree.leaves(parameters(policy))} == {jnp.dtype(F32)}
    out = outputs(policy, spec)
    assert out.policy.logits.dtype == out.value.dtype == F32 and out.features.dtype == jnp.bfloat16
    params, obs = weights(policy), jnp.ones((2, *spec.obs_spec.shape), spec.obs_spec.dtype)
    half, full = (jit(p.step)(params, (), obs, jnp.ones(2))[1] for p in (policy, make(F32)))
    np.testing.assert_allclose(half.value, full.value, atol=0.1)
    assert np.any(half.value != full.value)


def test_initial_policy_is_nearly_uniform_and_torsos_are_apart(key):
    shared, separate = networks.mlp(VECTOR, (16,)), networks.mlp(VECTOR, (16,), separate=True)
    obs = jax.random.normal(key, (32, 4))

    def value_gradient(policy):
        params = policy.init(key)
        out = policy.step(params, (), obs, jnp.ones(32))[1]
        return out, jax.grad(
            lambda params: policy.step(params, (), obs, jnp.ones(32))[1].value.sum()
        )(params)["params"]

    (out, of_shared), (_, of_separate) = (
        jit(lambda p=p: value_gradient(p))() for p in (shared, separate)
    )
    assert np.abs(out.policy.logits).max() < 0.1 and np.std(out.value) > 0.1  # gains 0.01 and 1
    assert np.abs(of_shared["actor"]["Dense_0"]["kernel"]).max() > 0
    assert (
        np.abs(of_separate["actor"]["Dense_0"]["kernel"]).max()
        == 0
        < np.abs(of_separate["critic"]["Dense_0"]["kernel"]).max()
    )


def test_banded_is_the_convolution(key):
    """The band and `lax.conv` agree in value and in both gradients, for a grid that is not square."""
    key_x, key_kernel, key_out = jax.random.split(key, 3)
    x, kernel = (
        jax.random.normal(key_x, (2, 5, 7, 3)),
        jax.random.normal(key_kernel, (3, 3, 3, 4)) / 5,
    )
    weight = jax.random.normal(key_out, (2, 3, 5, 4))

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def both(x, kernel):
        return [
            (f(x, kernel), *jax.grad(lambda *a, f=f: jnp.sum(weight * f(*a)), (0, 1))(x, kernel))
            for f in (banded, conv)
        ]

    ours, theirs = jit(both)(x, kernel)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=3e-6)


# --- hidden layers --------------------------------------------------------------------------------------------------


def test_every_hidden_layer_is_shown(key):
    """Layer by layer as numpy says; the last is `features`; with `separate` those of the policy's torso; beside the heads of streams."""
    policy = networks.mlp(VECTOR, (8, 6, 5), separate=True, extra=("rnd",))
    params, obs = weights(policy), jax.random.normal(key, (3, 4))
    out = jit(policy.step)(params, (), obs, jnp.ones(3))[1]
    x = np.asarray(obs)
    for i in range(3):
        layer = jax.tree.map(np.asarray, params["params"]["actor"][f"Dense_{i}"])
        x = np.tanh(x @ layer["kernel"] + layer["bias"])
        np.testing.assert_allclose(out.extra[f"hidden_{i}"], x, atol=1e-5)
    np.testing.assert_array_equal(out.extra["hidden_2"], out.features)
    assert set(out.extra) == {"rnd", "hidden_0", "hidden_1", "hidden_2"} and out.extra[
        "rnd"
    ].shape == (3,)


def test_layers_of_a_cnn_are_flat():
    out = outputs(networks.cnn(GRID, (4, 6), (9, 8)), GRID)
    sizes = [out.extra[f"hidden_{i}"].shape for i in range(4)]
    assert (
        sizes == [(5, 7, 8 * 8 * 4), (5, 7, 6 * 6 * 6), (5, 7, 9), (5, 7, 8)]
        and len(out.extra) == 4
    )


@pytest.mark.parametrize("taken", ["hidden_0", "value", "actor"])
def test_a_stream_cannot_be_called_like_a_layer(taken):
    with pytest.raises(UsageError, match=taken):
        networks.mlp(VECTOR, (8,), extra=(taken,))


class Still:
    """Nothing happens here."""

    default_params = None

    def reset_env(self, key, params):
        return jnp.zeros(4), jnp.zeros(4)

    def step_env(self, key, state, action, params):
        return state, state, 0.0, False, {}

    def is_truncated(self, state, params):
        return False

    def action_space(self, params):
        return Discrete(2)


@pytest.mark.parametrize("read", [False, True], ids=["unread", "read"])
def test_a_layer_that_nothing_reads_is_not_kept(read):
    """In the compiled update no buffer [T, B, F] is left of it, although the scan of the rollout hands out every layer."""
    env = envs.make(Still(), 4, max_steps=5)
    student, teacher = networks.mlp(env, (13, 11)), networks.mlp(env, (8,))

    def loss(student, batch):
        hidden = batch.acting.extra["hidden_0"].sum(-1) if read else 0.0
        return batch.teacher.policy.kl(student.policy) + batch.target + hidden

    algorithm = distill(
        env, student, teacher, losses={"loss": loss}, unroll_length=6, num_minibatches=1
    )
    args = jax.eval_shape(algorithm.init, jax.random.key(0)), parameters(teacher)
    text = jit(algorithm.step).lower(*args).compile().as_text()
    assert [f"f32[6,4,{width}]" in text for width in (13, 11)] == [read, False]
    assert "f32[6,4,4]" in text  # the observations, so that the test can fail


# --- observations ---------------------------------------------------------------------------------------------------


def test_dict_observations_are_flattened_in_the_order_of_their_names(key):
    """As an MLP on one array [a, b...] with the same weights; integers and booleans are numbers."""
    flat = Spec(shape(7), Box((2,)))
    obs = {"b": jax.random.normal(key, (5, 2, 3)), "a": jnp.arange(5, dtype=jnp.int32)}
    joined = jnp.concatenate([obs["a"][:, None].astype(F32), obs["b"].reshape(5, 6)], 1)
    policy, other = networks.mlp(REACH, (8,)), networks.mlp(flat, (8,))
    params = weights(policy)
    (_, ours), (_, theirs) = (
        jit(p.step)(params, (), x, jnp.ones(5)) for p, x in ((policy, obs), (other, joined))
    )
    np.testing.assert_allclose(ours.policy.mean, theirs.policy.mean, rtol=1e-6)
    assert np.std(ours.value) > 0
    bits = jax.random.bernoulli(key, shape=(2, 10, 10, 4))
    cnn = networks.cnn(GRID, (2,), (4,))
    params = weights(cnn)
    seen = [
        jit(cnn.step)(params, (), x, jnp.ones(2))[1].value
        for x in (bits, bits.astype(jnp.int8), bits.astype(F32))
    ]
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])


def test_select_sees_one_field(key):
    spec = Spec({"full": shape(6), "blind": shape(2)}, Discrete(3))
    obs = {"full": jax.random.normal(key, (4, 6)), "blind": jax.random.normal(key, (4, 2))}
    policy = networks.mlp(spec, (8,), select="blind", normalise=True)
    params = weights(policy)
    assert params["policy"]["params"]["actor"]["Dense_0"]["kernel"].shape == (2, 8)
    out = policy.step(params, (), obs, jnp.ones(4))[1]
    np.testing.assert_array_equal(
        out.value, policy.step(params, (), obs | {"full": obs["full"] + 9}, jnp.ones(4))[1].value
    )
    seen = policy.observe(params, jax.tree.map(lambda x: x[None], obs))["statistics"]
    np.testing.assert_allclose(seen.mean, obs["blind"].mean(0), rtol=1e-5)
    bare = networks.select(networks.mlp(Spec(shape(2), Discrete(3)), (8,)), "blind")
    np.testing.assert_allclose(
        bare.step(params["policy"], (), obs, jnp.ones(4))[1].value, out.value, rtol=1e-5
    )


def test_normalised_standardises_and_clips(key):
    """Mean 3, variance 4: the network sees (x - 3) / 2, and 10 instead of 1000; no gradient reaches the statistics."""
    plain = networks.mlp(VECTOR, (8,))
    policy = networks.normalised(plain, VECTOR.obs_spec)
    params = weights(policy)
    obs = jax.random.normal(key, (6, 4))
    np.testing.assert_allclose(
        policy.step(params, (), obs, jnp.ones(6))[1].value,
        plain.step(params["policy"], (), obs, jnp.ones(6))[1].value,
        rtol=1e-5,
    )
    params = policy.observe(
        params, jnp.broadcast_to(jnp.array([1.0, 5.0])[:, None, None], (2, 3, 4))
    )
    seen = params["statistics"]
    assert seen.count == 6 and np.allclose(seen.mean, 3) and np.allclose(seen.var, 4)
    obs = obs.at[0, 0].set(1000.0)
    standard = jnp.clip((obs - 3) / 2, -10, 10)
    for call, inner in ((policy.step, plain.step), (policy.unroll, plain.unroll)):
        ours = call(params, (), obs, jnp.ones(6))[1]
        np.testing.assert_allclose(
            ours.value,
            inner(params["policy"], (), standard, jnp.ones(6))[1].value,
            rtol=1e-4,
            atol=1e-5,
        )
    gradient = jax.grad(lambda params: policy.step(params, (), obs, jnp.ones(6))[1].value.sum())(
        params
    )
    assert all(not np.any(x) for x in jax.tree.leaves(gradient["statistics"])) and np.any(
        gradient["policy"]["params"]["value"]["kernel"]
    )


# --- modules of one's own, descriptions -----------------------------------------------------------------------------


class Heads(nn.Module):
    kind: str
    width: int

    @nn.compact
    def __call__(self, obs):
        parameters, value = nn.Dense(self.width)(obs), nn.Dense(1)(obs)[..., 0]
        if self.kind == "outputs":
            return Outputs(Categorical(parameters), value, obs)
        return {
            "pair": (parameters, value),
            "alone": parameters,
            "record": Categorical(parameters),
            "three": (parameters, value, value),
        }[self.kind]


def test_feedforward_understands_what_a_module_returns():
    def made(kind, width=2, spec=VECTOR):
        return outputs(networks.feedforward(spec, Heads(kind, width)), spec)

    assert made("outputs").features.shape == (5, 7, 4)
    assert made("pair").value == shape(5, 7) and made("outputs").value == shape(5, 7)
    for kind in ("alone", "record"):
        assert made(kind).value == () and made(kind).policy.logits == shape(5, 7, 2)
    box = Spec(shape(4), Box((3,)))
    for kind in ("pair", "alone"):
        assert made(kind, 6, box).policy.mean == made(kind, 6, box).policy.log_std == shape(5, 7, 3)
    with pytest.raises(UsageError, match=r"\[\.\.\., 6\], got"):
        made("alone", 3, box)
    with pytest.raises(UsageError, match="got 3 values"):
        made("three")


def test_mean_and_log_std_are_the_two_halves(key):
    policy = networks.feedforward(Spec(shape(4), Box((2,))), nn.Dense(4))
    params, obs = weights(policy), jnp.ones((1, 4))
    out = policy.step(params, (), obs, jnp.ones(1))[1].policy
    np.testing.assert_allclose(
        jnp.concatenate([out.mean, out.log_std], -1)[0],
        params["params"]["kernel"].sum(0) + params["params"]["bias"],
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    "spec",
    [VECTOR, GRID, REACH, Spec({"x": {"y": shape(3)}, "z": shape(2)}, Discrete(4))],
    ids=["vector", "grid", "dict", "nested"],
)
def test_a_description_holds_the_specification(spec):
    """`spec_of` gives back what the policy was made for, and a policy of that specification is the same one."""
    policy = networks.mlp(spec, (8,), separate=True)
    again = networks.spec_of(policy.description)
    assert again == spec
    assert hash(policy.description) == hash(networks.mlp(again, [8], separate=True).description)
    assert jax.tree.structure(parameters(policy)) == jax.tree.structure(
        parameters(networks.mlp(again, (8,), separate=True))
    )
    assert (
        networks.temper(policy, 0.5).description == ()
    )  # a tempered policy can not be made again from its description


def test_noise_lasts_an_episode_and_is_another_for_each_environment(key):
    env = envs.make("CartPole-v1", 3)
    inside = networks.mlp(env, (8,), normalise=True)
    noise, still = networks.noisy(inside, 0.3), networks.noisy(inside, 0.0)
    obs = jnp.broadcast_to(jnp.arange(4.0), (4, 3, 4))  # the same for all, always
    reset = jnp.zeros((4, 3)).at[0].set(1.0).at[2, 1].set(1.0)

    @jax.jit
    def played(key):
        params = noise.init(key)
        carry, out = noise.unroll(params, noise.initial_carry(3), obs, reset)
        _, once = noise.step(params, noise.initial_carry(3), obs[0], reset[0])
        _, calm = still.unroll(still.init(key), still.initial_carry(3), obs, reset)
        return (
            out.policy.logits,
            once.policy.logits,
            calm.policy.logits,
            inside.unroll(params["policy"], (), obs, reset)[1].policy.logits,
        )

    logits, once, calm, plain = played(key)
    np.testing.assert_allclose(calm, plain, rtol=1e-5)
    np.testing.assert_allclose(logits[0], once, rtol=1e-5)
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-5)
    assert abs(logits[2, 1] - logits[1, 1]).max() > 1e-3  # a new episode
    np.testing.assert_allclose(logits[2:, ::2], logits[:2, ::2], rtol=1e-5)
    assert abs(logits[0, 0] - logits[0, 1]).max() > 1e-3
    assert abs(played(jax.random.fold_in(key, 1))[0] - logits).max() > 1e-3


def test_what_acted_with_noise_is_what_the_losses_see(key):
    env = envs.make("CartPole-v1", 4, max_steps=5)
    policy = networks.noisy(networks.mlp(env, (8,)), 0.5)
    apart = lambda student, batch: jnp.abs(
        student.policy.log_prob(batch.action) - batch.acting.policy.log_prob(batch.action)
    )
    terms = {"apart": losses.watch(apart), "policy": losses.ppo_clip()}
    algorithm = distill(env, policy, losses=terms, unroll_length=8, num_minibatches=1)
    state, metrics = run(algorithm, key, 3)
    assert metrics["loss/apart"].max() < 1e-5
    fresh = algorithm.init(key)
    assert state.params["seed"] == fresh.params["seed"]
    assert evaluate(
        env, networks.mlp(env, (8,)), state.params["policy"], key, num_episodes=4
    ).returns.shape == (4,)
