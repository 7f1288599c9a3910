"""Policies as files.

Every kind of policy comes back, damage and edits are one line, nothing is lost.
"""

import json
import os
import shutil
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import check, load_policy, networks, policies, save_policy
from jaxkd.base import ArtifactError, Discrete, Outputs, Policy, UsageError
from jaxkd.description import Spec, described
from jaxkd.distributions import Categorical

ARTIFACTS = Path(__file__).parent / "artifacts"
ANSWERS = json.loads((ARTIFACTS / "answers.json").read_text())
VECTOR = jax.ShapeDtypeStruct((4,), jnp.float32)
SPEC = Spec(VECTOR, Discrete(2))
PADDED = {
    "obs": VECTOR,
    "task": jax.ShapeDtypeStruct((), jnp.int32),
    "mask": jax.ShapeDtypeStruct((2,), jnp.bool_),
}
TASKS = Spec(PADDED, Discrete(2), ("first", "second"))


class Cameras(NamedTuple):
    left: object
    right: object


def tanh(x):
    """LeCun's, not jax.numpy's."""
    return 1.7159 * jnp.tanh(2 * x / 3)


class Small(nn.Module):
    width: int = 3
    activation: object = nn.relu

    @nn.compact
    def __call__(self, obs):
        return nn.Dense(2)(self.activation(nn.Dense(self.width)(obs)))


class Averaged(nn.Module):
    use_running_average: bool = True

    @nn.compact
    def __call__(self, obs):
        x = nn.BatchNorm(use_running_average=self.use_running_average)(obs)
        return nn.Dense(2, name="statistics")(x)


class Half(nn.Module):
    @nn.compact
    def __call__(self, obs):
        return nn.Dense(2, param_dtype=jnp.bfloat16)(obs)


@described
def doubled(policy):
    """A factory of one's own."""

    def step(params, carry, obs, reset):
        carry, out = policy.step(params, carry, obs, reset)
        return carry, out._replace(policy=Categorical(2 * out.policy.logits))

    return policy._replace(step=step, unroll=step)


def init_by_hand(key):
    return {"W": jax.random.normal(key, (4, 2))}


def step_by_hand(params, carry, obs, reset):
    return carry, Outputs(Categorical(obs @ params["W"]))


def no_carry(num_envs):
    return ()


def region(obs):
    return jnp.stack([obs[..., 0] > 0, obs[..., 0] <= 0], axis=-1)


def weights(policy, seed=0):
    """Random params without an initialisation to compile."""
    rng = np.random.default_rng(seed)
    spec = jax.eval_shape(policy.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.1, 1, x.shape), x.dtype), spec)


def answer(policy, params, spec):
    rng = np.random.default_rng(1)
    obs = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=(3, *x.shape)), x.dtype), spec)
    return policy.step(params, policy.initial_carry(3), obs, jnp.ones(3))[1]


def mlp(spec=SPEC, **keywords):
    return networks.mlp(spec, (5,), **keywords)


NESTED = Spec({"cam": {"x": VECTOR}, "cam/x": VECTOR}, Discrete(2))
KINDS = {
    "mlp": (mlp(activation=tanh, extra=("b",), normalise=True), VECTOR),
    "width": (networks.mlp(SPEC, 5), VECTOR),
    "bfloat16": (mlp(dtype=jnp.bfloat16), VECTOR),
    "half": (networks.feedforward(SPEC, Half()), VECTOR),
    "lstm": (networks.lstm(SPEC, (4,), units=3, activation=nn.gelu), VECTOR),
    "gru": (networks.gru(SPEC, (4,)), VECTOR),
    "multihead": (networks.multihead(TASKS, (4,), network=networks.gru), PADDED),
    "concat": (networks.concat(TASKS, [mlp(), networks.lstm(SPEC, (4,))], [SPEC] * 2), PADDED),
    "mixture": (networks.mixture([mlp(), networks.lstm(SPEC, (4,))], (0.5, 0.5)), VECTOR),
    "regions": (networks.mixture([mlp(), mlp()], region), VECTOR),
    "per_env": (networks.per_env(networks.gru(SPEC, (4,)), 3), VECTOR),
    "temper": (networks.temper(networks.q(mlp(layer_norm=True)), np.float32(0.5)), VECTOR),
    "noisy": (networks.noisy(mlp(normalise=True), 0.1), VECTOR),
    "normalised": (networks.normalised(mlp(), VECTOR), VECTOR),
    "select": (networks.select(mlp(), "a"), {"a": VECTOR, "b": VECTOR}),
    "selected": (mlp(Spec({"a": VECTOR}, Discrete(2)), select="a", normalise=True), {"a": VECTOR}),
    "flax": (networks.feedforward(SPEC, nn.Sequential([nn.Dense(3), tanh, nn.Dense(2)])), VECTOR),
    "own": (networks.feedforward(SPEC, Small(4, tanh), normalise=True), VECTOR),
    "averages": (networks.feedforward(SPEC, Averaged()), VECTOR),
    "described": (networks.temper(doubled(mlp()), 2.0), VECTOR),
    "by hand": (Policy(init_by_hand, no_carry, step_by_hand, step_by_hand), VECTOR),
    "tuple": (mlp(Spec((VECTOR, VECTOR), Discrete(2)), normalise=True), (VECTOR, VECTOR)),
    "record": (
        mlp(Spec(Cameras(VECTOR, VECTOR), Discrete(2)), normalise=True),
        Cameras(VECTOR, VECTOR),
    ),
    "list": (mlp(Spec([VECTOR, VECTOR], Discrete(2)), normalise=True), [VECTOR, VECTOR]),
    "slashes": (mlp(NESTED, normalise=True), NESTED.obs_spec),
}


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind, tmp_path):
    """The same description, params bit for bit, the same answer.

    And it fits the environment it was made for (A11).
    """
    policy, spec = KINDS[kind]
    params = weights(policy)
    file = save_policy(tmp_path / "policy", policy, params, env="X", mean=np.float32(1.5))
    again, loaded = load_policy(file)
    assert again.description == policy.description
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    ours, theirs = answer(policy, params, spec), answer(again, loaded, spec)
    np.testing.assert_array_equal(ours.policy.logits, theirs.policy.logits)
    env = SimpleNamespace(obs_spec=spec, action_space=Discrete(2), name="X")
    check.fits("teacher", again, env)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.json", "policy.npz"]
    card = json.loads((tmp_path / "policy.json").read_text())
    assert card["format"] == 2 and card["notes"] == {"env": "X", "mean": 1.5}


def test_ones_own_activation_comes_back_as_itself(tmp_path):
    """A9: 1.7159 tanh(2 x / 3) came back as tanh."""
    policy = networks.mlp(SPEC, (1,), activation=tanh)
    again, _ = load_policy(save_policy(tmp_path / "a", policy, weights(policy)))
    assert dict(again.description.keywords)["activation"] is tanh


@pytest.mark.parametrize("name", ["mlp-1", "lstm-1", "mlp-2", "lstm-2"])
def test_files_of_earlier_versions(name):
    """Logits at linspace(-1, 1, 12) of files that were committed when their format was new."""
    policy, params = load_policy(ARTIFACTS / name)
    obs = jnp.linspace(-1, 1, 12).reshape(3, 4)
    out = policy.step(params, policy.initial_carry(3), obs, jnp.ones(3))[1]
    np.testing.assert_allclose(out.policy.logits, ANSWERS[name], atol=1e-6)


# --- what cannot be saved -----------------------------------------------------------------------


def replaced():
    return mlp()._replace(step=step_by_hand)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (mlp(activation=lambda x: x), r"mlp\(activation=...\): lambda has no importable name"),
        (mlp(activation=partial(nn.gelu, approximate=False)), "functools.partial"),
        (networks.temper(mlp(), jnp.ones(2)), r"temper\(temperature=...\): an array"),
        (replaced(), "the policy's step is not the one that its description makes"),
        (mlp()._replace(init=weights), "the policy's init is not the one"),
        (networks.q(Policy(weights, no_carry, lambda *a: a, no_carry)), r"q\(policy=...\).*lambda"),
    ],
    ids=["lambda", "partial", "array", "step", "init", "inside"],
)
def test_policies_without_a_name_are_refused(policy, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        policies._written(policy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p | {"more": jnp.ones(1)}, "'more': expected no such array, got"),
        (lambda p: jax.tree.map(lambda x: x[None], p), "one seed at a time"),
        (lambda p: jax.tree.map(lambda x: x * np.nan, p), "holds nan"),
        (lambda p: p | {"more": jax.random.key(0)}, "which a file cannot hold"),
        (lambda p: p | {"more": 1.0}, "no array"),
    ],
    ids=["more", "seeds", "nan", "key", "number"],
)
def test_params_that_are_refused(change, words, tmp_path):
    policy = mlp()
    with pytest.raises(UsageError, match=words):
        save_policy(tmp_path / "policy", policy, change(weights(policy)))
    assert not list(tmp_path.iterdir())


def test_not_inside_jit_and_no_objects_as_notes(tmp_path):
    policy = mlp()
    with pytest.raises(UsageError, match="outside of jit"):
        jax.eval_shape(lambda p: save_policy(tmp_path / "p", policy, p) and p, weights(policy))
    with pytest.raises(UsageError, match="notes are JSON values, got object"):
        save_policy(tmp_path / "p", policy, weights(policy), note=object())


# --- a full disk, a process that ends -----------------------------------------------------------


def saved(tmp_path, seed=0):
    policy = mlp()
    params = weights(policy, seed)
    return policy, params, save_policy(tmp_path / "policy", policy, params)


@pytest.mark.parametrize("writes", [1, 2])
def test_a_full_disk_keeps_the_old_policy(writes, tmp_path, monkeypatch):
    """C1: the disk is full at the first or at the second file."""
    policy, params, file = saved(tmp_path)
    left = [writes]

    def full(descriptor):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"policy.npz not written: No space left on device"):
        save_policy(file, policy, weights(policy, 1))
    jax.tree.map(np.testing.assert_array_equal, load_policy(file)[1], params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.json", "policy.npz"]


@pytest.mark.parametrize("renames", [1, 2])
def test_a_process_that_ends_between_two_renames(renames, tmp_path, monkeypatch):
    """Card and arrays never part.

    Before the first rename the old policy is there, after it the new one.
    """
    policy, old, file = saved(tmp_path)
    new, rename, left = weights(policy, 1), Path.replace, [renames]

    def killed(path, target):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_policy(file, policy, new)
    monkeypatch.undo()
    expected = old if renames == 1 else new
    jax.tree.map(np.testing.assert_array_equal, load_policy(file)[1], expected)
    save_policy(file, policy, old)
    jax.tree.map(np.testing.assert_array_equal, load_policy(file)[1], old)
    assert len(list(tmp_path.iterdir())) == 2


# --- hostile and damaged files ------------------------------------------------------------------


def edit(path, change):
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))


def keyword(name, value):
    return lambda card: card["network"]["keywords"].update({name: value})


@pytest.mark.parametrize(
    "change",
    [
        keyword("activation", {"function": "jax.nn:relu"}),
        keyword("activation", {"function": "jax.numpy:array"}),
        keyword("extra", ["bonus"]),
        lambda card: card.update(notes={"return_mean": 500.0}),
        lambda card: card.update(more=1),
        lambda card: card.pop("digest"),
        lambda card: card.update(format=1),
        lambda card: card.update(digest=7),
    ],
)
def test_an_edited_card_is_refused(change, tmp_path):
    """C3: the digest covers the card, so also what it says of the network and in its notes."""
    *_, file = saved(tmp_path)
    edit(file.with_suffix(".json"), change)
    with pytest.raises(ArtifactError, match="do not fit the digest") as raised:
        load_policy(file)
    assert "\n" not in str(raised.value)


def sign(file, change):
    """An edited card with a digest that fits: what an attacker would write."""
    path = file.with_suffix(".json")
    card = json.loads(path.read_text())
    change(card)
    arrays = policies._read_arrays(file)
    path.write_text(json.dumps(card | {"digest": policies.digest(arrays, card)}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (keyword("activation", {"function": "os:system"}), "a part of Python"),
        (keyword("activation", {"function": "my_networks:act"}), "import my_networks first"),
        (keyword("hidden", "x"), "describes no network"),
        (keyword("hidden", [1e9]), "describes no network"),
        (keyword("hidden", [7]), "does not fit its network: .*expected"),
        (keyword("hidden", [10**9]), "does not fit its network"),
        (keyword("nothing", 1), "has no keyword 'nothing'"),
        (lambda card: card.update(network=[["x"]]), "no policy"),
        (lambda card: card.update(network=None), "no policy"),
        (lambda card: card.pop("network"), "describes no network"),
        (lambda card: card["network"].update(factory="jaxkd:run"), "no factory of described"),
        (lambda card: card["network"].update(factory="jaxkd.networks:none"), "there is no"),
    ],
)
def test_a_signed_card_does_nothing_else(change, words, tmp_path):
    *_, file = saved(tmp_path)
    sign(file, change)
    with pytest.raises(ArtifactError, match=words) as raised:
        load_policy(file)
    assert "\n" not in str(raised.value)


def huge_header(file):
    shutil.copy(file, f"{file}.old")
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("params/x.npy", "w") as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
            np.lib.format.write_array_header_1_0(member, header)


def packed(file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"0" * 10**6)


def pickled(file):
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("x.npy", "w") as member:
            np.lib.format.write_array(member, np.array([{}], object), allow_pickle=True)


def flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def pipe(path):
    path.unlink()
    os.mkfifo(path)


CARD = [
    lambda path: path.write_text("[" * 200_000),
    lambda path: path.write_text(""),
    lambda path: path.write_bytes(b"\xff\xfe"),
    lambda path: path.write_text("[]"),
    lambda path: path.write_text('{"format": 99}'),
    lambda path: path.unlink(),
    pipe,
]
ARRAYS = [
    huge_header,
    packed,
    pickled,
    flipped,
    pipe,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(path.read_bytes()[:-40]),
    lambda path: path.write_bytes(path.read_bytes()[:100]),
    lambda path: path.unlink(),
]


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [(".json", damage) for damage in CARD] + [(".npz", damage) for damage in ARRAYS],
)
def test_damage_is_one_line(suffix, damage, tmp_path):
    """C3: also what has no text, no end, or claims more than there is memory."""
    *_, file = saved(tmp_path)
    damage(file.with_suffix(suffix))
    with pytest.raises(ArtifactError) as raised:
        load_policy(file)
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "folder.npz/x"])
def test_names_that_no_file_can_have(name, tmp_path):
    with pytest.raises(ArtifactError, match="no file"):
        load_policy(f"{tmp_path}/{name}")


def test_a_header_that_claims_too_much_is_not_believed(tmp_path):
    """Before anything is allocated: 10^12 numbers in a file of some hundred bytes."""
    *_, file = saved(tmp_path)
    huge_header(file)
    with pytest.raises(ArtifactError, match="claims 4000000000000 bytes"):
        load_policy(file)


def test_nan_weights_are_refused(tmp_path):
    policy, params, file = saved(tmp_path)
    arrays = policies._read_arrays(file)
    arrays["params/policy/bias"][0] = np.nan
    with file.open("wb") as opened:
        policies._write_arrays(opened, arrays)
    sign(file, lambda card: None)
    with pytest.raises(ArtifactError, match="nan in 'params/policy/bias'"):
        load_policy(file)
