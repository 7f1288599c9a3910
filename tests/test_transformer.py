"""The transformer: by hand, step against unroll, resets, a sliding window, files, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import (
    description,
    distill,
    envs,
    evaluate,
    load_policy,
    losses,
    memory_needed,
    networks,
    ppo,
    run,
    save_policy,
)
from jaxkd.base import Box, Discrete, Env, TimeStep, UsageError
from jaxkd.networks.module import Spec

L, N, V, D, H, G, W = 7, 3, 5, 16, 4, 2, 8
TOKENS = Spec(jax.ShapeDtypeStruct((), jnp.int32), Discrete(V))
VECTOR = Spec({"a": jax.ShapeDtypeStruct((3,), jnp.float32)}, Box((2,)))
RESET = np.zeros((L, N), np.float32)
RESET[0, :2], RESET[3, 1], RESET[5, 1:] = 1, 1, 1  # the third goes on from its cache


def made(spec=TOKENS, context=W, layers=2, **keywords):
    return networks.transformer(spec, layers, D, H, context=context, kv_heads=G, **keywords)


def weights(policy, seed=0, scale=0.3):
    rng = np.random.default_rng(seed)
    spec = jax.eval_shape(policy.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape), x.dtype), spec)


def rows(spec=TOKENS, length=L, seed=1):
    rng = np.random.default_rng(seed)
    draw = lambda x: (
        rng.normal(size=(length, N, *x.shape)) if x.shape else rng.integers(0, V, (length, N))
    )
    return jax.tree.map(lambda x: jnp.asarray(draw(x), x.dtype), spec.obs_spec)


def assert_near(one, other, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5), one, other)


def by_hand(params, tokens, context, layers=2):
    """One episode [T] in float64, row by row, without a cache: logits [T, V] and values [T]."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
    norm = lambda name, x: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p[name]
    silu = lambda x: x / (1 + np.exp(-x))

    def turn(x, position):  # complex numbers instead of pairs
        half = x.shape[-1] // 2
        z = (x[..., :half] + 1j * x[..., half:]) * np.exp(
            1j * position * 10_000.0 ** (-np.arange(half) / half)
        )
        return np.concatenate([z.real, z.imag], -1)

    x = p["embedding"][tokens]
    for i in range(layers):
        y, out = norm(f"attention_{i}_norm", x), np.zeros_like(x)
        q = np.einsum("td,dgrk->tgrk", y, p[f"attention_{i}_query"])
        k = np.einsum("td,dgk->tgk", y, p[f"attention_{i}_key"])
        v = np.einsum("td,dgk->tgk", y, p[f"attention_{i}_value"])
        for t in range(len(tokens)):
            seen = range(max(0, t - context + 1), t + 1)
            heads = []
            for g in range(q.shape[1]):
                for r in range(q.shape[2]):
                    score = np.array([turn(q[t, g, r], t) @ turn(k[s, g], s) for s in seen])
                    share = np.exp(score / np.sqrt(D // H))
                    heads.append((share / share.sum()) @ v[list(seen), g])
            out[t] = np.concatenate(heads) @ p[f"attention_{i}_out"]
        x = x + out
        y = norm(f"gated_{i}_norm", x)
        x = x + (silu(y @ p[f"gated_{i}_a"]) * (y @ p[f"gated_{i}_b"])) @ p[f"gated_{i}_out"]
    x = norm("norm", x)
    return x @ p["embedding"].T, x @ p["value"]["kernel"][:, 0] + p["value"]["bias"]


@pytest.mark.parametrize("context", [W, 3], ids=["whole", "sliding"])
def test_against_one_by_hand(context):
    """Two blocks, grouped heads, in float64 numpy; every episode of the columns alone."""
    policy = made(context=context)
    params, tokens = weights(policy), rows()
    out = jax.jit(policy.unroll)(params, policy.initial_carry(N), tokens, jnp.asarray(RESET))[1]
    for n in range(N):
        begins = [0, *[t for t in range(1, L) if RESET[t, n]], L]
        for first, end in zip(begins, begins[1:], strict=False):
            logits, value = by_hand(params, np.asarray(tokens[first:end, n]), context)
            np.testing.assert_allclose(out.policy.logits[first:end, n], logits, atol=2e-5)
            np.testing.assert_allclose(out.value[first:end, n], value, atol=2e-5)


@pytest.mark.parametrize(
    ("spec", "context"), [(TOKENS, W), (VECTOR, 3)], ids=["tokens", "sliding-vector"]
)
def test_step_by_step_is_unroll(spec, context):
    """And unroll in two parts, from a cache that is not empty, with resets in the middle."""
    policy = made(spec, context, extra=("rnd",))
    params, reset = weights(policy), jnp.asarray(RESET)
    start = jax.jit(policy.unroll)(
        params, policy.initial_carry(N), rows(spec, 5, seed=2), jnp.zeros((5, N)).at[2, 2].set(1.0)
    )[0]
    obs = rows(spec)
    last, whole = jax.jit(policy.unroll)(params, start, obs, reset)
    step = lambda carry, row: policy.step(params, carry, *row)
    scanned, alone = jax.jit(jax.lax.scan, static_argnums=0)(step, start, (obs, reset))
    assert_near(alone, whole)
    np.testing.assert_array_equal(scanned.position, last.position)
    more = lambda carry: policy.unroll(params, carry, rows(spec, 4, seed=3), jnp.zeros((4, N)))[1]
    assert_near(more(scanned), more(last))  # what a reset has left in a cache is not seen
    cut = lambda tree, part: jax.tree.map(lambda x: x[part], tree)
    half, first = policy.unroll(params, start, cut(obs, slice(4)), reset[:4])
    end, second = policy.unroll(params, half, cut(obs, slice(4, L)), reset[4:])
    joined = jax.tree.map(lambda *x: jnp.concatenate(x), first, second)
    assert_near((more(end), joined), (more(last), whole))
    assert np.std(whole.value) > 0.05 and whole.extra["rnd"].shape == (L, N)


def test_episodes_never_see_each_other():
    """No gradient runs from a row to a later episode's, and none to an earlier row."""
    policy = made(VECTOR)
    params, obs, start = weights(policy), rows(VECTOR), policy.initial_carry(N)

    def last_value(obs, t):
        return jnp.sum(policy.unroll(params, start, obs, jnp.asarray(RESET))[1].value[t])

    slope = jax.jit(jax.jacobian(lambda obs: jnp.stack([last_value(obs, t) for t in range(L)])))
    moved = np.any(np.asarray(slope(obs)["a"]) != 0, axis=-1)  # [row, by row, N]
    for n in range(N):
        episode = np.cumsum(RESET[:, n])
        wanted = np.tril(np.ones((L, L))) * (episode[:, None] == episode[None])
        np.testing.assert_array_equal(moved[:, :, n], wanted)


def test_half_precision_and_single_parts():
    """The cache is of the dtype, what comes out float32; multi-query attention, several fields."""
    half = made(dtype=jnp.bfloat16)
    params, tokens = weights(half, scale=0.1), rows()
    carry, out = jax.jit(half.unroll)(params, half.initial_carry(N), tokens, jnp.asarray(RESET))
    exact = made().unroll(params, made().initial_carry(N), tokens, jnp.asarray(RESET))[1]
    assert carry.keys[0].dtype == jnp.bfloat16 and out.policy.logits.dtype == jnp.float32
    assert 0 < np.max(np.abs(out.policy.logits - exact.policy.logits)) < 0.1
    spec = Spec({"token": TOKENS.obs_spec, "hint": TOKENS.obs_spec}, Discrete(V))
    sizes = jax.eval_shape(made(spec).init, jax.random.key(0))["params"]
    assert {"embedding_token", "embedding_hint"} < set(sizes) and "policy" not in sizes
    apart = jax.eval_shape(made(VECTOR).init, jax.random.key(0))["params"]
    assert apart["policy"]["kernel"].shape == (D, 2) and apart["input_a"].shape == (3, D)


def test_the_first_weights(key):
    """Logits are near 0, whatever the token; a deeper one's last layer is as large."""
    for layers in (1, 4):
        policy = made(layers=layers)
        said = jax.jit(
            lambda key, policy=policy: policy.unroll(
                policy.init(key), policy.initial_carry(N), rows(), jnp.asarray(RESET)
            )
        )
        out = said(key)
        assert np.max(np.abs(out[1].policy.logits)) < 1.0
        assert 0.2 < np.std(out[1].extra[f"hidden_{layers - 1}"]) < 2


def test_saved_and_loaded(tmp_path):
    policy = made(select="token", **{"spec": Spec({"token": TOKENS.obs_spec}, Discrete(V))})
    params, obs = weights(policy), {"token": rows()}
    loaded, again = load_policy(save_policy(tmp_path / "small", policy, params))
    assert description.name(loaded) == "transformer"
    args = policy.initial_carry(N), obs, jnp.asarray(RESET)
    assert_near(policy.unroll(params, *args), loaded.unroll(again, *args), 0)


# --- in the learner -------------------------------------------------------------------------------


def chain(num_envs, length):
    """Episodes of `length` random tokens; what is right is the token of two steps before."""
    draw = lambda key: jax.random.randint(key, (num_envs,), 0, V)

    def step(key, state, action):
        time, now, before = state
        token, done = draw(key), (time == length - 1)
        right = jnp.float32((action == before) & (time > 0))
        flag = done.astype(jnp.float32)
        after = jnp.where(done, 0, time + 1), token, now
        return after, TimeStep(token, token, right, flag, 0 * flag)

    zeros = jnp.zeros(num_envs, jnp.int32)
    reset = lambda key: ((zeros, (first := draw(key)), zeros), first)
    return Env(reset, step, num_envs, *TOKENS[:2], max_steps=length, truncates=False, name="chain")


@pytest.mark.slow
def test_learns_from_its_own_kind(key):
    """A student half as deep comes near its teacher on its own rows."""
    env = chain(16, 6)
    teacher, student = made(env), made(env, layers=1)
    kd = distill(env, student, teacher, losses={"kl": losses.forward_kl()}, unroll_length=12)
    expert = weights(teacher, scale=0.2)
    after, metrics = run(kd, key, 150, expert)
    assert metrics["loss/kl"][-10:].mean() < 0.3 * metrics["loss/kl"][:10].mean()
    alone = evaluate(env, student, after.params, key, num_episodes=16)
    np.testing.assert_array_equal(alone.lengths, 6)


def test_the_cache_is_written_in_place(key):
    """The compiled decoding loop copies nothing of the cache's size, and needs one of it."""
    policy = made(layers=2, context=64)
    params, start, num = weights(policy), policy.initial_carry(256), 64
    tokens = jnp.zeros((num, 256), jnp.int32)
    decode = jax.jit(
        lambda carry: jax.lax.scan(
            lambda carry, token: policy.step(params, carry, token, jnp.zeros(256)), carry, tokens
        )[0],
        donate_argnums=0,
    )
    compiled = decode.lower(start).compile()
    inside = "\n".join(line for line in compiled.as_text().splitlines() if " copy(" in line)
    assert f"f32[256,64,{G},{D // H}]" not in inside
    size = sum(x.nbytes for x in jax.tree.leaves(start))
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * size


@pytest.mark.slow
def test_memory_is_known_before():
    """A cache twice as long takes as much more as its bytes."""

    def needed(context):
        env = chain(64, 6)
        student = made(env, context=context)
        kd = distill(env, student, student, losses={"kl": losses.forward_kl()}, unroll_length=6)
        return memory_needed(kd, jax.random.key(0), 1, weights(student))

    cache = 2 * 2 * 64 * G * (D // H) * 4  # bytes of one row of all environments, two layers
    more = (needed(512) - needed(256)) / (256 * cache)
    assert 1.9 < more < 12, more  # that of the student and of the teacher at least


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (dict(layers=0), "layers must be a positive int"),
        (dict(kv_heads=3), "heads = 4 is not divisible by kv_heads = 3"),
        (dict(width=15), "width = 15 is not divisible by heads = 4"),
        (dict(width=20), "gives 5 to each"),
        (dict(context=0), "context must be a positive int"),
        (dict(env=chain(4, 9)), "context = 8, but an episode of 'chain' has up to 9 steps"),
        (dict(env=TOKENS._replace(action_space=Box((2,)))), "there is no vocabulary"),
    ],
)
def test_errors(keywords, message):
    usual = dict(env=TOKENS, layers=2, width=D, heads=H, context=W)
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        networks.transformer(**(usual | keywords))


def test_longer_episodes_than_the_cache_are_refused_where_it_is_used():
    policy = networks.temper(made(chain(4, 8)), 0.5)
    kl = {"kl": losses.forward_kl()}
    with pytest.raises(UsageError, match="teacher has context = 8, but an episode of 'chain'"):
        distill(chain(4, 9), networks.mlp(chain(4, 9), (4,)), policy, losses=kl, unroll_length=8)
    sliding = networks.transformer(chain(4, 9), 1, D, H, context=4, sliding=True)
    distill(chain(4, 9), sliding, sliding, losses=kl, unroll_length=8)


@pytest.mark.slow
def test_a_control_task_too(key):
    """Vectors in, a window that slides: PPO of CartPole's teacher runs, episodes are cut."""
    env = envs.make("CartPole-v1", num_envs=4, max_steps=6)
    policy = networks.transformer(env, 1, D, 2, context=4, sliding=True)
    _, metrics = run(ppo(env, policy, unroll_length=8, num_minibatches=1), key, 2)
    assert np.all(np.isfinite(metrics["loss/policy"]))
