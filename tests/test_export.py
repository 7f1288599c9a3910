"""Exported policies answer as they did, in C and in numpy; damaged ones are refused."""

import json
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_runtime import POLICIES, observations

import jaxkd
from jaxkd import cli, networks
from jaxkd.base import ArtifactError, UsageError
from jaxkd.export import _digest, c

MADE = {}  # (policy, params) by name: the same in every test of a process


def made(name):
    if name not in MADE:
        policy = POLICIES[name]
        noise = lambda x, own: x + 0.2 * own * jax.random.normal(jax.random.key(2), x.shape)
        params = policy.init(jax.random.key(1))
        params = jax.tree.map(noise, params, policy.trainable(params))
        seen = observations(name, jax.random.key(3), 32)
        MADE[name] = policy, policy.observe(params, jax.tree.map(lambda x: x[None], seen))
    return MADE[name]


def exported(name, folder, **given):
    resets = np.arange(100) % 30 == 0
    seen = observations(name, jax.random.key(5), 100)
    return jaxkd.export(*made(name), folder / "student", observations=seen, resets=resets, **given)


@pytest.mark.parametrize("name", POLICIES)
def test_c_answers_as_the_policy(name, tmp_path):
    """Without a warning, within 1e-5, and never another action."""
    parity = jaxkd.check_export(exported(name, tmp_path))
    assert parity.error < 1e-5 and parity.equal == 1 and parity.number == 100


@pytest.mark.parametrize("name", ["mlp norms", "cnn", "gru"])
def test_eight_bits(name, tmp_path):
    small, large = exported(name, tmp_path / "8", int8=True), exported(name, tmp_path / "32")
    assert 0 < jaxkd.check_export(small).error < 0.1 and jaxkd.check_export(small).equal >= 0.98
    sizes = [json.loads(file.read_text())["weight_bytes"] for file in (small, large)]
    assert sizes[0] < 0.65 * sizes[1]  # biases, norms and the normaliser stay float32
    source = small.with_name("student.c").read_text()
    assert "signed char" in source and "malloc" not in source


def test_quantised_by_hand():
    """A scale for each output, 0 for none; -127 to 127."""
    rows, scale = c.quantised(np.array([[2.54, 0.0], [-1.0, 0.0]], np.float32))
    assert rows.tolist() == [[127, 0], [-50, 0]]
    np.testing.assert_allclose(scale, [0.02, 1], rtol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "mlp select", "lstm"])
def test_numpy(name, tmp_path):
    assert jaxkd.check_export(exported(name, tmp_path, to="numpy")).equal == 1
    assert {file.name for file in tmp_path.iterdir()} == {
        "student.npz",
        "student.json",
        "student.export.json",
    }


def test_acting_in_c(tmp_path):
    """`NAME_act` is what a user calls: the best action, or means within [-1, 1]."""
    policy, params = made("mlp box")
    jaxkd.export(policy, params, tmp_path / "arm-1")
    (tmp_path / "main.c").write_text(
        '#include "arm_1.h"\n#include <stdio.h>\nint main(void) {\n'
        "  float obs[ARM_1_OBS] = {1, 2, 3, 4}, action[ARM_1_OUT];\n"
        '  arm_1_act(obs, action);\n  printf("%.6f %.6f", action[0], action[1]);\n  return 0;\n}\n'
    )
    build = ["gcc", "-std=c99", "-I.", "main.c", "arm_1.c", "-lm", "-o", "main"]
    subprocess.run(build, cwd=tmp_path, check=True)
    got = subprocess.run([tmp_path / "main"], capture_output=True, text=True).stdout.split()
    wanted = policy.step(params, (), jnp.array([[1.0, 2, 3, 4]]), jnp.ones(1))[1].policy.mode()[0]
    np.testing.assert_allclose(np.array(got, float), jnp.clip(wanted, -1, 1), atol=2e-6)


def test_damage_is_refused(tmp_path):
    """Nothing is compiled of what changed; what answers otherwise is no artifact."""
    card = exported("mlp", tmp_path)
    file, text = tmp_path / "student.c", (tmp_path / "student.c").read_text()
    file.write_text(text + "/* */")
    with pytest.raises(ArtifactError, match="missing or was changed"):
        jaxkd.check_export(card)
    file.write_text(text)
    whole = card.read_text()
    for damaged in (whole[:100], whole.replace('"int8": false', '"int8": true'), "[]", ""):
        card.write_text(damaged)
        with pytest.raises(ArtifactError, match="cannot be read|changed after it was exported"):
            jaxkd.check_export(card)
    wrong = json.loads(whole)
    wrong["golden"]["outputs"][3] = [x + 1e-3 for x in wrong["golden"]["outputs"][3]]
    wrong["digest"] = _digest({k: v for k, v in wrong.items() if k != "digest"})
    card.write_text(json.dumps(wrong))
    with pytest.raises(ArtifactError, match="answers otherwise than its policy"):
        jaxkd.check_export(card)


def test_what_cannot_be_exported(tmp_path):
    policy, params = made("mlp")
    odd = networks.mlp(networks.module.Spec(*_specification()), (4,), activation=jnp.sin)
    several = networks.q(policy)
    for odd_one, own, given, said in (
        (odd, odd.init(jax.random.key(0)), {}, "'sin' is not computed here: tanh"),
        (several, several.init(jax.random.key(0)), {}, "'q' is not computed here"),
        (policy, params, {"to": "onnx"}, "to is 'c' or 'numpy'"),
    ):
        with pytest.raises(UsageError, match=said):
            jaxkd.export(odd_one, own, tmp_path / "student", **given)
    assert not list(tmp_path.iterdir())


def _specification():
    return jax.ShapeDtypeStruct((4,), jnp.float32), jaxkd.base.Discrete(2)


def test_the_commands(tmp_path, capsys, monkeypatch):
    """FILE ENV: what the policy sees while it plays is what the artifact is checked on."""
    monkeypatch.chdir(tmp_path)
    env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    policy = networks.mlp(env, (8,))
    jaxkd.save_policy("cart", policy, policy.init(jax.random.key(0)))
    assert cli.main(["export", "cart.npz", "CartPole-v1", "--int8", "--out", "on/board"]) == 0
    said = capsys.readouterr().out
    assert "on/board.c" in said and "100.0 % of 256 actions are the policy's" in said
    assert cli.main(["check", "on/board.export.json"]) == 0
    (tmp_path / "on/board.h").write_text("")
    assert cli.main(["check", "on/board.export.json"]) == 4
    assert cli.main(["export", "cart.npz", "Acrobot-v1"]) == 2
    assert "error: policy" in capsys.readouterr().err
