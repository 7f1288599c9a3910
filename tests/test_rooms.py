"""What is not built in has an obvious room: each capability is placed by reading `base.py` and
`learner.py` alone, in at most 30 lines, and the engine stays as it is.

A loss of one's own is a function (test_losses.py), curiosity a `RewardTransform` (`rewards.icm`,
test_intrinsic.py), a teacher for each environment a `Policy` (`networks.per_env`, test_combine.py),
a resumed run a `State` that was saved (test_checkpoint.py).

Legend of shapes: `T` time, `B` environments, `L` sequence length, `N` sequences, `W` rows of a
cache, `K` tasks.
"""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_structure import code_lines

import jaxkd
from jaxkd import behavior, description, losses, networks
from jaxkd.base import Algorithm, Discrete, Env, Memory, Outputs, Policy, TimeStep
from jaxkd.distributions import Categorical
from jaxkd.returns import gae

B, T = 4, 6
SIZES = dict(unroll_length=T, num_minibatches=1)
KL = losses.forward_kl()
RECORD = Memory(
    init=lambda spec: (), add=lambda buffer, batch: batch, sample=lambda key, buffer, batch: batch
)


def anything():
    """Observations without a meaning, episodes cut after 4 steps: quick to compile."""
    draw = lambda key: jax.random.uniform(key, (B, 4), minval=-1.0)

    def step(key, time, action):
        cut = (time == 3).astype(jnp.float32)
        key_next, key_new = jax.random.split(key)
        after = draw(key_next)
        obs = jnp.where(cut[:, None] > 0, draw(key_new), after)
        return (time + 1) % 4, TimeStep(obs, after, after[:, 0] * action, 0 * cut, cut)

    reset = lambda key: (jnp.zeros(B, jnp.int32), draw(key))
    obs_spec = jax.ShapeDtypeStruct((4,), jnp.float32)
    return Env(reset, step, B, obs_spec, Discrete(2), max_steps=4, cut_steps=4)


def plain(width, inputs=4, actions=2):
    """Two matrices, the last one with a column for the value: quick to compile."""

    def init(key):
        shapes = {"in": (inputs, width), "heads": (width, actions + 1)}
        return {name: jax.random.uniform(key, shape) - 0.5 for name, shape in shapes.items()}

    def say(params, carry, obs, reset):
        out = jnp.tanh(obs @ params["in"]) @ params["heads"]
        return carry, Outputs(Categorical(out[..., :actions]), out[..., actions])

    return Policy(init, lambda num_envs: (), say, say)


ENV, TEACHER, STUDENT = anything(), plain(5), plain(8)


def weights(policy, *lead, seed=0):
    """Random params, each leaf [*lead, ...], without an initialisation to compile."""
    rng, spec = np.random.default_rng(seed), jax.eval_shape(policy.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=(*lead, *x.shape)), x.dtype), spec)


def assert_near(one, other, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), one, other)


# --- the carry of a policy ------------------------------------------------------------------------


def test_a_transformer_whose_cache_is_the_carry(key):
    """One causal layer with learnt positions; a row sees the W before it, of its own episode."""
    window, shapes = 3, {"embed": (4, 8), "qkv": (8, 24), "place": (4,), "heads": (8, 3)}
    empty = {"k": jnp.zeros((3, 8)), "v": jnp.zeros((3, 8)), "episode": -jnp.ones(3)}

    def unroll(params, carry, obs, reset):
        x = jnp.tanh(obs @ params["embed"])
        q, k, v = jnp.split(x @ params["qkv"], 3, axis=-1)
        new = {"k": k, "v": v, "episode": jnp.cumsum(reset, axis=0)}  # 0: that of the cache
        join = lambda old, new: jnp.concatenate([old.swapaxes(0, 1), new])
        seen = jax.tree.map(join, carry, new)  # [W + L, N, ...]
        episode, place = seen["episode"], jnp.arange(window + len(x))
        behind = place[window:, None] - place[None]  # [L, W + L]
        score = jnp.einsum("qnd,knd->qkn", q, seen["k"])
        score += params["place"][jnp.clip(behind, 0, window)][..., None]
        visible = ((behind >= 0) & (behind <= window))[..., None]
        visible &= episode[window:, None] == episode[None]
        share = jax.nn.softmax(jnp.where(visible, score, -1e9), axis=1)
        out = (x + jnp.einsum("qkn,knd->qnd", share, seen["v"])) @ params["heads"]
        seen["episode"] = jnp.float32(episode == episode[-1:]) - 1.0
        carry = jax.tree.map(lambda x: x[-window:].swapaxes(0, 1), seen)
        return carry, Outputs(Categorical(out[..., :2]), out[..., 2])

    def step(params, carry, obs, reset):
        carry, out = unroll(params, carry, obs[None], reset[None])
        return carry, jax.tree.map(lambda x: x[0], out)

    init = lambda key: {name: jax.random.uniform(key, shape) for name, shape in shapes.items()}
    carry = lambda n: jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), empty)
    policy = Policy(init, carry, step, unroll)
    assert_remembers_its_episode(policy, key)
    assert_learns_in_short_sequences(policy, key)


def assert_remembers_its_episode(policy, key):
    """`step`, `unroll`, and `unroll` in two halves say the same; a reset forgets."""
    params = jax.tree.map(lambda x: 0.3 * x, weights(policy))  # no attention is all on one row
    obs = jax.random.uniform(key, (T, B, 4))
    reset = jnp.zeros((T, B)).at[0].set(1.0).at[2, 1].set(1.0).at[3:5, 2].set(1.0)
    unroll, start = jax.jit(policy.unroll), policy.initial_carry(B)
    carry, out = unroll(params, start, obs, reset)
    row = lambda carry, row: policy.step(params, carry, *row)
    assert_near(jax.jit(jax.lax.scan, static_argnums=0)(row, start, (obs, reset)), (carry, out))
    half, first = unroll(params, start, obs[:3], reset[:3])
    end, second = unroll(params, half, obs[3:], reset[3:])
    assert_near((end, jax.tree.map(lambda *x: jnp.concatenate(x), first, second)), (carry, out))
    other = unroll(params, start, obs.at[1].add(1.0), reset)[1].value
    differs = np.asarray(other != out.value)[1:]
    np.testing.assert_array_equal(differs[0], True)
    np.testing.assert_array_equal(differs[1], [True, False, True, True])  # env 1 begins anew
    np.testing.assert_array_equal(differs[2:, 1:3], False)


def assert_learns_in_short_sequences(policy, key):
    """Two updates with L < T and cut-off successors; every sequence goes on from its carry."""
    apart = losses.watch(lambda student, batch: jnp.abs(student.value - batch.acting.value))
    terms = {"kl": KL, "value": losses.td_mse(), "apart": apart}
    kd = jaxkd.distill(ENV, policy, TEACHER, losses=terms, sequence_length=3, **SIZES)
    chunks = jaxkd.stream(kd, key, 2, weights(TEACHER), chunk_size=1)
    (one, first), (two, second) = (jax.device_get((state.params, said)) for state, said in chunks)
    assert first["loss/apart"] < 1e-5 and second["loss/apart"] < 1e-5
    assert all(np.any(one[name] != two[name]) for name in one)


# --- the weight of a time step --------------------------------------------------------------------


@pytest.mark.parametrize("terms", [{}, {"ppo": losses.ppo_clip(), "value": losses.td_mse()}])
def test_prompts_are_not_trained_on(terms, key):
    """The gradient is that of the answers alone, though labels and a loss are nan in the prompt."""
    nothing, returns = jnp.zeros(B, jnp.int32), gae(0.9, 0.8)
    show = lambda time, token: jax.nn.one_hot(time, 5) * (1.0 + token[:, None])

    def env_step(key, state, action):  # the first two of five tokens are forced
        forced, time = state["time"] < 2, (state["time"] + 1) % 5
        token = jnp.where(forced, jax.random.randint(key, (B,), 0, 3), action)
        obs, done = show(time, token), jnp.float32(time == 0)
        step = TimeStep(obs, obs, jnp.float32(token == 1), done, 0 * done, 1.0 - forced)
        return {"time": time, "token": token}, step

    def label(params, carry, obs, reset):
        prompt = jnp.any(obs[..., :2] > 0, axis=-1, keepdims=True)
        return carry, Outputs(Categorical(jnp.where(prompt, jnp.nan, obs[..., 2:])))

    start = lambda key: ({"time": nothing, "token": nothing}, show(nothing, nothing))
    env = Env(start, env_step, B, jax.ShapeDtypeStruct((5,), jnp.float32), Discrete(3), 5, False)
    student, teacher = plain(6, 5, 3), Policy(lambda key: (), lambda num_envs: (), label, label)
    bad = lambda student, batch: jnp.where(batch.weight > 0, 0.1, jnp.nan) * student.value
    terms = terms | {"kl": KL, "bad": losses.stateless(bad)}
    keywords = dict(returns=returns, memory=RECORD, optimizer=optax.sgd(1.0), num_minibatches=1)
    kd = jaxkd.distill(env, student, teacher, losses=terms, unroll_length=5, **keywords)
    before = kd.init(key)
    after, _ = jax.jit(kd.step)(before, ())
    rows = jax.tree.map(lambda x: x[2:], after.memory._replace(carry=(), weight=()))
    value = jnp.concatenate([rows.acting.value, rows.acting_next.value[-1:]])
    gain, target = returns.evaluate(rows.reward, value, rows.acting_next.value, rows, None)
    rows = rows._replace(advantage=gain, targets={"": target}, weight=jnp.ones((3, B)))
    said = lambda params: student.unroll(params, (), rows.obs, rows.reset)[1]
    losses_of = lambda params: [x.loss((), said(params), rows, None) for x in terms.values()]
    gradient = jax.grad(lambda params: sum(map(jnp.mean, losses_of(params))))(before.params)
    assert_near(after.params, jax.tree.map(jnp.subtract, before.params, gradient))


# --- an algorithm of algorithms -------------------------------------------------------------------


def test_meta_learning(key):
    """MAML (Finn et al. 2017): a start from which one step of distillation suits any teacher."""
    keywords = dict(behavior=behavior.teacher_acts(), optimizer=optax.sgd(0.5)) | SIZES
    kd = jaxkd.distill(ENV, STUDENT, TEACHER, losses={"kl": KL}, **keywords)
    outer = optax.adam(0.05)

    def adapted(params, key, teacher):
        state = kd.init(key)._replace(params=params)
        state, _ = kd.step(state, teacher)  # on a support batch
        return kd.step(state, teacher)[1]["loss/kl"]  # on a query batch, the next rollout

    def init(key):
        params = weights(STUDENT)
        return {"params": params, "moments": outer.init(params), "key": key}

    def step(state, teachers):
        key, own = jax.random.split(state["key"])
        keys = jax.random.split(own, 3)
        mean = lambda params: jnp.mean(jax.vmap(adapted, (None, 0, 0))(params, keys, teachers))
        loss, gradient = jax.value_and_grad(mean)(state["params"])
        change, moments = outer.update(gradient, state["moments"])
        params = optax.apply_updates(state["params"], change)
        return {"params": params, "moments": moments, "key": key}, {"adapted": loss}

    maml = jaxkd.lanes(Algorithm(init, step))
    loss = jaxkd.run(maml, jaxkd.seeds(0, 2), 30, weights(TEACHER, 3))[1]["adapted"]
    assert np.all(loss[-5:].mean(0) < 0.5 * loss[:5].mean(0))
    both, params = jax.jit(jax.value_and_grad(adapted)), weights(STUDENT)
    slope = both(params, key, weights(TEACHER))[1]  # second order: that of finite differences
    ends = [jax.tree.map(lambda p, g, e=e: p + e * g, params, slope) for e in (1e-2, -1e-2)]
    ahead, behind = (both(end, key, weights(TEACHER))[0] for end in ends)
    square = sum(jnp.sum(g * g) for g in jax.tree.leaves(slope))
    np.testing.assert_allclose((ahead - behind) / 2e-2, square, rtol=1e-2)


# --- a policy of a policy -------------------------------------------------------------------------


def test_pruning(key):
    """The larger half of each matrix stays (Han et al. 2015); the rest is 0 from then on."""
    larger = lambda x: jnp.abs(x) >= jnp.median(jnp.abs(x))
    masked = lambda params: jax.tree.map(jnp.multiply, params["weights"], params["mask"])

    def init(key):
        weights = STUDENT.init(key)
        params = {"weights": weights, "mask": jax.tree.map(larger, weights)}
        return params | {"weights": masked(params)}

    def through(call):
        return lambda params, carry, obs, reset: call(masked(params), carry, obs, reset)

    def trainable(params):
        every = lambda tree, value: jax.tree.map(lambda x: value, tree)
        return {"weights": every(params["weights"], True), "mask": every(params["mask"], False)}

    step, unroll = through(STUDENT.step), through(STUDENT.unroll)
    pruned = Policy(init, STUDENT.initial_carry, step, unroll, trainable=trainable)
    kd = jaxkd.distill(ENV, pruned, TEACHER, losses={"kl": KL}, optimizer=optax.adamw(0.1), **SIZES)
    after, metrics = jaxkd.run(kd, key, 20, weights(TEACHER))
    assert metrics["loss/kl"][-1] < 0.5 * metrics["loss/kl"][0]
    for name, mask in after.params["mask"].items():
        assert np.mean(mask) == 0.5
        np.testing.assert_array_equal(after.params["weights"][name] != 0, mask)
    assert jaxkd.actor_size(pruned, after.params, ENV.obs_spec) == (4 * 8 + 8 * 3) / 2


def test_an_int8_student(key):
    """Quantised after training: whole numbers, and a scale for each array."""

    def quantise(params):
        scale = jax.tree.map(lambda x: jnp.max(jnp.abs(x)) / 127, params)
        whole = lambda x, scale: jnp.round(x / scale).astype(jnp.int8)
        return {"int8": jax.tree.map(whole, params, scale), "scale": scale}

    def through(call):
        def dequantised(params, carry, obs, reset):
            weights = jax.tree.map(jnp.multiply, params["int8"], params["scale"])
            return call(weights, carry, obs, reset)

        return dequantised

    init = lambda key: quantise(STUDENT.init(key))
    step, unroll = through(STUDENT.step), through(STUDENT.unroll)
    none = lambda params: jax.tree.map(lambda x: False, params)
    small = Policy(init, STUDENT.initial_carry, step, unroll, trainable=none)
    trained, rng = weights(STUDENT), np.random.default_rng(0)
    obs = rng.normal(size=(100, 4)).astype(np.float32)
    exact = STUDENT.step(trained, (), obs, jnp.ones(100))[1].policy
    kl = exact.kl(small.step(quantise(trained), (), obs, jnp.ones(100))[1].policy)
    assert 0 < jnp.max(kl) < 1e-3
    played = jaxkd.evaluate(ENV, small, quantise(trained), key, num_episodes=B)
    np.testing.assert_array_equal(played.lengths, 4)


# --- the description of a policy ------------------------------------------------------------------


def test_an_export(key):
    """A dict of numpy arrays, the description's keywords, and a forward pass without jax."""
    policy = networks.mlp(ENV, (8, 5), normalise=True)
    params = jax.tree.map(jnp.abs, weights(policy))  # variances are positive
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    arrays, card = {name(path): np.asarray(x) for path, x in leaves}, description.keywords(policy)

    def forward(obs):
        mean, var = arrays["statistics/mean"], arrays["statistics/var"]
        x = np.clip((obs - mean) / np.sqrt(var + 1e-8), -10, 10)
        dense = lambda x, at: x @ arrays[f"{at}/kernel"] + arrays[f"{at}/bias"]
        for i in range(len(card["hidden"])):
            x = getattr(np, card["activation"].__name__)(dense(x, f"policy/params/actor/Dense_{i}"))
        return dense(x, "policy/params/policy")

    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    out = policy.step(params, (), obs, jnp.ones(50))[1]
    np.testing.assert_allclose(forward(obs), out.policy.logits, rtol=1e-4, atol=1e-5)


def test_a_room_takes_at_most_thirty_lines():
    source = Path(__file__).read_text()
    lines, tests = code_lines(source), [n for n in ast.parse(source).body if hasattr(n, "args")]
    sizes = {n.name: len(lines & set(range(n.lineno, n.end_lineno + 1))) for n in tests}
    assert {name: size for name, size in sizes.items() if size > 30} == {}
