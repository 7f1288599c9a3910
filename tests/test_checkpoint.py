"""Checkpoints: the same bits come back and go on, whatever is damaged is refused, whoever asks for
another state is told both sides.
"""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import methods, networks
from jaxkd.base import ArtifactError, UsageError
from jaxkd.checkpoint import Checkpoints

SAVED = (
    Path(__file__).parent / "artifacts" / "checkpoint-1"
)  # written by `python test_checkpoint.py`


def algorithm():
    """As much state as there is: seeds, an LSTM, a ring, a predictor, Adam, a normaliser."""
    env = jaxkd.envs.make("CartPole-v1", 2)
    student = networks.lstm(env, (4,), units=4, normalise=True)
    teacher = networks.mlp(env, (4,))
    kd = methods.dagger(env, student, teacher, capacity=2, unroll_length=4, num_minibatches=1)
    return jaxkd.lanes(kd), jaxkd.seeds(0, 3), teacher.init(jax.random.key(1))


@pytest.fixture(scope="module")
def trained():
    """(algorithm, keys, teacher params, states after 1, 2 and 3 updates) on the host."""
    many, keys, params = algorithm()
    states = [host(s) for s, _ in jaxkd.stream(many, keys, 3, params, chunk_size=1)]
    return many, keys, params, states


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    """A folder with checkpoints of steps 1 to 3, written while the next update runs."""
    many, keys, params, _ = trained
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder) as checkpoints:
        for step, (state, _) in enumerate(jaxkd.stream(many, keys, 3, params, chunk_size=1), 1):
            checkpoints.save(state, step, score=-step, algorithm="dagger")
    return folder


def host(state):
    """Copies of all leaves; keys as their data."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: np.array(jax.random.key_data(x) if is_key(x) else x), state)


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def shapes(trained):
    return jax.eval_shape(trained[0].init, trained[1])


def test_the_newest_two_and_the_best_are_kept_and_come_back(trained, saved):
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]  # 1 has the best score
        for step in (1, 2, 3):
            state, found = checkpoints.restore(shapes(trained), step, algorithm="dagger")
            assert found == step
            assert_equal(host(state), trained[3][step - 1])
            assert jax.tree.structure(state) == jax.tree.structure(shapes(trained))


@pytest.mark.bits
def test_a_restored_run_goes_on_with_the_same_bits(trained, saved):
    many, keys, params, states = trained
    state = jaxkd.restore(saved, shapes(trained), step=1)
    stream = jaxkd.stream(many, keys, 2, params, chunk_size=1, state=state)
    for (state, _), expected in zip(stream, states[1:], strict=True):
        assert_equal(host(state), expected)


def test_nothing_of_a_framework_is_in_the_files(saved):
    for file in saved.rglob("*"):
        if file.is_file():
            assert b"flax" not in file.read_bytes().lower(), file


def test_a_damaged_file_is_refused_or_harmless(trained, saved, tmp_path):
    files = [p.relative_to(saved / "3") for p in (saved / "3").rglob("*") if p.is_file()]
    draw, like = random.Random(0), shapes(trained)
    refused = 0
    for number in range(60):
        folder = tmp_path / str(number)
        shutil.copytree(saved / "3", folder / "3")
        damage(folder / "3" / draw.choice(files), folder / "3" / draw.choice(files), draw)
        try:
            assert_equal(host(jaxkd.restore(folder, like)), trained[3][2])
        except ArtifactError as error:
            assert "\n" not in str(error)
            refused += 1
        shutil.rmtree(folder)
    assert refused > 40


def damage(file: Path, other: Path, draw: random.Random) -> None:
    """A flipped bit, a cut, nothing left, gone, or another one's content."""
    data = bytearray(file.read_bytes())
    kind = draw.choice(("flip", "cut", "empty", "delete", "swap"))
    if kind == "flip" and data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        data = data[: draw.randrange(len(data) + 1)]
    elif kind == "swap":
        data = other.read_bytes()
    file.write_bytes(b"" if kind == "empty" else data)
    if kind == "delete":
        file.unlink()


def test_a_flipped_bit_of_an_unsealed_checkpoint_is_refused_too(trained, saved, tmp_path):
    """Killed before SHA256SUMS was there: the card still knows every leaf."""
    shutil.copytree(saved / "3", tmp_path / "3")
    (tmp_path / "3" / "SHA256SUMS").unlink()
    assert_equal(host(jaxkd.restore(tmp_path, shapes(trained))), trained[3][2])
    shutil.copytree(saved / "3", tmp_path / "4")
    (tmp_path / "4" / "SHA256SUMS").unlink()
    card = tmp_path / "4" / "_CHECKPOINT_METADATA"
    card.write_text(card.read_text().replace('"dagger"', '"daggre"'))
    with pytest.raises(ArtifactError, match="its card is not what was saved"):
        jaxkd.restore(tmp_path, shapes(trained), step=4)


def test_a_damaged_newest_one_is_passed_over_with_a_warning(trained, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    sums = tmp_path / "run" / "3" / "SHA256SUMS"
    sums.write_text(sums.read_text().replace("a", "b", 1))
    with Checkpoints(tmp_path / "run") as checkpoints:
        with pytest.warns(UserWarning, match="3 is damaged.*Going on with the one before"):
            state, step = checkpoints.restore(shapes(trained))
        assert step == 2
        assert_equal(host(state), trained[3][1])
        checkpoints.save(state, 3)  # in its place
        assert checkpoints.restore(shapes(trained))[1] == 3


def test_both_sides_are_printed_of_what_does_not_fit(trained, saved):
    wider = jaxkd.envs.make("CartPole-v1", 4)
    other = jaxkd.ppo(wider, networks.mlp(wider, (4,)))
    like = jax.eval_shape(other.init, jaxkd.seeds(0, 1)[0])
    with pytest.raises(UsageError, match="another algorithm or size") as told:
        jaxkd.restore(saved, like)
    assert "saved as float32[3, " in str(told.value) and "now it is" in str(told.value)
    with pytest.raises(UsageError, match="another algorithm: saved 'dagger', now 'ppo'"):
        jaxkd.restore(saved, shapes(trained), algorithm="ppo")
    with pytest.raises(UsageError, match="another teacher: saved None, now 'x'"):
        jaxkd.restore(saved, shapes(trained), teacher="x")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda like: jaxkd.restore("/nowhere", like), "no checkpoint: /nowhere is no directory"),
        (lambda like: jaxkd.save({"a": "text"}, "x", 0), r"leaf \['a'\] is a str"),
        (lambda like: jax.jit(lambda x: jaxkd.save(x, "x", 0))(1.0), "between updates"),
        (lambda like: jaxkd.save({"a": 1.0}, "/dev/null/x", 0), "cannot hold checkpoints"),
    ],
)
def test_what_is_refused(trained, fault, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UsageError, ArtifactError), match=message):
        fault(shapes(trained))


def test_a_step_that_is_not_there(trained, saved, tmp_path):
    with pytest.raises(ArtifactError, match=r"no checkpoint of step 9 .* there are \[1, 2, 3\]"):
        jaxkd.restore(saved, shapes(trained), step=9)
    with pytest.raises(ArtifactError, match="no checkpoint in .* there is none"):
        jaxkd.restore(tmp_path, shapes(trained))


FULL = """
import resource, signal, sys
import jax.numpy as jnp
import jaxkd
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
jaxkd.save({"x": jnp.ones(1000)}, sys.argv[1], 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
try:
    jaxkd.save({"x": jnp.arange(10**6)}, sys.argv[1], 2)
except jaxkd.ArtifactError as error:
    print(error)
print(jaxkd.restore(sys.argv[1], {"x": jnp.ones(1000)})["x"].sum())
"""


def test_a_full_disk_leaves_the_one_before(tmp_path):
    """A limit of the file size, since a disk cannot be filled here."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    cause, whole = done.stdout.splitlines()
    assert "could not be written" in cause and "are kept" in cause
    assert whole == "1000.0"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["1"]


def test_other_devices(tmp_path):
    """Written by two devices, read by one, and the other way round."""
    env = jaxkd.envs.make("CartPole-v1", 4)
    ppo = jaxkd.ppo(env, networks.mlp(env, (4,)), unroll_length=4, optimizer=optax.sgd(0.1))
    wide = jaxkd.sharding.shard(ppo, jaxkd.sharding.mesh(envs=2))
    key = jaxkd.seeds(0, 1)[0]
    for number, (writer, reader) in enumerate(((wide, ppo), (ppo, wide))):
        state, like = jax.jit(writer.init)(key), jax.jit(reader.init)(key)
        jaxkd.save(state, tmp_path / str(number), 1)
        found = jaxkd.restore(tmp_path / str(number), like)
        assert_equal(host(found), host(state))
        assert found.actors.obs.sharding == like.actors.obs.sharding


def small_state():
    """What the committed checkpoint holds."""
    state = {"params": {"w": jnp.arange(6.0).reshape(2, 3)}, "key": jax.random.key(7)}
    return state | {"half": jnp.ones(2, jnp.bfloat16), "update": jnp.int32(5)}


def test_a_committed_checkpoint_still_loads(tmp_path):
    shutil.copytree(SAVED, tmp_path / "run")
    state = jaxkd.restore(tmp_path / "run", jax.eval_shape(small_state), kind="small")
    assert_equal(host(state), host(small_state()))
    card = json.loads((SAVED / "5" / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]
    assert card["format"] == 1


if __name__ == "__main__":
    jaxkd.save(small_state(), SAVED, 5, kind="small")
