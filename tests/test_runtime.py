"""`jaxkd.runtime`: numpy answers as the policy does, alone and quickly; damage is refused."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkd
from jaxkd import networks, runtime
from jaxkd.base import Box, Discrete
from jaxkd.networks.module import Spec

N, STEPS = 64, 5
VECTOR = Spec(jax.ShapeDtypeStruct((4,), jnp.float32), Discrete(3))
GRID = Spec(jax.ShapeDtypeStruct((6, 5, 2), jnp.bool_), Discrete(3))
ARM = Spec(jax.ShapeDtypeStruct((4,), jnp.float32), Box((2,)))
SEEN = Spec({"seen": VECTOR.obs_spec, "hidden": VECTOR.obs_spec}, Discrete(3))

POLICIES = {
    "mlp": networks.mlp(VECTOR, (16, 8)),
    "mlp separate": networks.mlp(VECTOR, (16,), separate=True, activation=jax.nn.relu),
    "mlp norms": networks.mlp(VECTOR, (16,), layer_norm=True, normalise=True),
    "mlp silu": networks.mlp(VECTOR, (16,), activation=jax.nn.silu),
    "mlp box": networks.mlp(ARM, (16,), normalise=True),
    "mlp select": networks.mlp(SEEN, (16,), select="seen", normalise=True),
    "select outside": networks.select(networks.mlp(VECTOR, (16,)), "seen"),
    "cnn": networks.cnn(GRID, (4,), (16,)),
    "cnn two": networks.cnn(GRID, (4, 3), (16,), normalise=True),
    "lstm": networks.lstm(VECTOR, (16,), units=8),
    "gru": networks.gru(VECTOR, (16,), units=8, normalise=True),
}


def observations(name, key, number):
    if name.startswith("cnn"):
        return jax.random.bernoulli(key, 0.3, (number, 6, 5, 2))
    vectors = 3 * jax.random.normal(key, (number, 4)) + 1
    return {"seen": vectors, "hidden": -vectors} if "select" in name else vectors


@pytest.fixture
def saved(request, tmp_path):
    policy = POLICIES[request.param]
    params = policy.init(jax.random.key(1))
    noise = lambda x, own: x + 0.1 * own * jax.random.normal(jax.random.key(2), x.shape)
    params = jax.tree.map(noise, params, policy.trainable(params))
    seen = observations(request.param, jax.random.key(3), 32)
    params = policy.observe(params, jax.tree.map(lambda x: x[None], seen))  # [T, B]
    return request.param, policy, params, jaxkd.save_policy(tmp_path / "student", policy, params)


@pytest.mark.parametrize("saved", POLICIES, indirect=True)
def test_numpy_answers_as_the_policy(saved):
    """A thousand observations are within 1e-5, relative to the largest, with equal actions."""
    name, policy, params, file = saved
    student, carry, reset = runtime.load(file), policy.initial_carry(N), jnp.ones(N)
    step = jax.jit(policy.step)
    for key in jax.random.split(jax.random.key(4), STEPS):
        obs = observations(name, key, N)
        carry, wanted = step(params, carry, obs, reset)
        wanted, reset = wanted.policy, jnp.zeros(N)
        wanted = wanted.logits if hasattr(wanted, "logits") else wanted.mean
        got = student.outputs(jax.tree.map(np.asarray, obs))
        np.testing.assert_allclose(got, wanted, atol=1e-5 * max(1, float(jnp.abs(wanted).max())))
        assert (got.argmax(-1) == np.asarray(wanted).argmax(-1)).all()


@pytest.mark.parametrize("saved", ["mlp", "mlp box", "lstm"], indirect=True)
def test_one_action(saved):
    """The greedy action is the policy's, again after a reset; drawn ones have its probabilities."""
    name, policy, params, file = saved
    student, obs = runtime.load(file), np.array([0.3, -1.0, 2.0, 0.1], np.float32)
    out = policy.step(params, policy.initial_carry(1), jnp.asarray(obs)[None], jnp.ones(1))[1]
    for _ in range(2):
        student.reset()
        wanted = out.policy.mode()[0]
        np.testing.assert_allclose(student.act(obs), jnp.clip(wanted, -1, 2), rtol=1e-5)
    if name == "mlp":
        rng = np.random.default_rng(0)
        drawn = np.bincount([student.act(obs, rng) for _ in range(4000)], minlength=3) / 4000
        np.testing.assert_allclose(drawn, jax.nn.softmax(out.policy.logits[0]), atol=0.03)


@pytest.mark.parametrize("saved", ["mlp"], indirect=True)
def test_it_needs_numpy_alone(saved):
    """No jax is imported, and what is, is there in a tenth of a second beside numpy."""
    program = f"""import sys, numpy, time
began = time.process_time()
import jaxkd.runtime
student = jaxkd.runtime.load({str(saved[-1])!r})
student.act(numpy.zeros(4))
print(time.process_time() - began)
assert not {{"jax", "flax", "optax", "gymnax"}} & set(sys.modules)"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.1


@pytest.mark.parametrize("saved", ["mlp"], indirect=True)
def test_damage_is_refused(saved):
    file = saved[-1]
    card = json.loads(file.with_suffix(".json").read_text())
    for change, said in (
        ({"notes": {"return_mean": 500}}, "do not fit the digest"),
        ({"format": 1}, "format 1, this reads 2"),
    ):
        file.with_suffix(".json").write_text(json.dumps(card | change))
        with pytest.raises(ValueError, match=said):
            runtime.load(file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        runtime.load(file)
