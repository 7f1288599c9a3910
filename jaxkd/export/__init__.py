"""A policy leaves JAX: files for small computers, each checked before it is called done.

An artifact is NAME.c and NAME.h, or NAME.npz and NAME.json for `jaxkd.runtime`. Beside either
stands NAME.export.json: golden observations with what the policy answers, sizes, and the SHA-256 of
every file; `check_export` replays them with the backend itself.
"""

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import runtime
from jaxkd.base import ArtifactError, Policy, UsageError
from jaxkd.description import spec
from jaxkd.export import c
from jaxkd.policies import save_policy

SUFFIX = ".export.json"
_FORMAT, _GOLDEN = 1, 256
_ERROR = 1e-5  # of float32 outputs, of the largest one where that is above 1
_EQUAL = {False: 1.0, True: 0.98}  # share of equal actions, by int8
_NEAR = 0.02  # continuous actions of int8 that are equal
_FLAGS = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic")
_MAIN = """#include "{name}.h"
#include <stdio.h>
int main(void) {{ /* stdin: rows of a reset and an observation; stdout: outputs */
  float row[1 + {upper}_OBS], out[{upper}_OUT];
  {declared}
  while (fread(row, sizeof(float), 1 + {upper}_OBS, stdin) == 1 + {upper}_OBS) {{
    {reset}
    {name}_outputs(row + 1, out{given});
    fwrite(out, sizeof(float), {upper}_OUT, stdout);
  }}
  return 0;
}}
"""


class Parity(NamedTuple):
    """How an artifact answers on its golden observations, against the policy it was made of."""

    error: float  # the largest difference of an output
    equal: float  # share of equal actions
    number: int  # of observations


def export(
    policy: Policy,
    params: Any,
    path: str | Path,
    *,
    to: str = "c",
    int8: bool = False,
    observations: Any = None,
    resets: Any = None,
    **notes: Any,
) -> Path:
    """Writes `policy` for a computer without JAX, after it answered as the policy does.

    Args:
        policy, params: an `mlp`, `cnn`, `lstm` or `gru`, normalised or on a selected field; the
            params of ONE seed.
        path: where, without a suffix; its last part is the name.
        to: "c", C99 without malloc (`NAME_outputs`, `NAME_act`, weights in constant memory), or
            "numpy", the files that `jaxkd.runtime.load` reads.
        int8: of C: kernels as int8 with a scale for every output, a quarter of the bytes.
        observations: [n, ...], what the policy sees when it acts, in order; None: random ones.
        resets: [n], 1 where an observation begins an episode; None: only the first.
        notes: JSON values for the card, such as env="CartPole-v1".

    Returns:
        the path of NAME.export.json.

    Raises:
        UsageError: a network or an activation that is not written here, an unknown format.
        ArtifactError: the artifact answers otherwise, beyond 1e-5 or by an action (int8: in over
            2 % of the observations); nothing is written.

    >>> import jaxkd, tempfile
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    >>> policy = jaxkd.networks.mlp(env, hidden=(8,))
    >>> file = export(policy, policy.init(jax.random.key(0)), tempfile.mkdtemp() + "/cart")
    >>> check_export(file).equal
    1.0
    """
    if to not in ("c", "numpy") or (int8 and to != "c"):
        raise UsageError(f"to={to!r}, int8={int8}: to is 'c' or 'numpy', int8 of C alone.")
    path = Path(path)
    name = re.sub(r"\W", "_", path.name) if to == "c" else path.name
    with tempfile.TemporaryDirectory() as folder:
        beside = Path(folder)
        saved = save_policy(beside / name, policy, params, **notes)
        golden = _golden(policy, params, observations, resets)
        try:
            student = runtime.load(saved)
        except ValueError as error:
            raise UsageError(f"the policy cannot be exported: {error}") from error
        files, facts = [saved, saved.with_suffix(".json")], {}
        if to == "c":
            facts = _write_c(beside / name, student, golden["obs"].shape[1:], int8)
            files = [beside / f"{name}.c", beside / f"{name}.h"]
        card = {"format": _FORMAT, "to": to, "name": name, "int8": int8, "notes": notes}
        card |= {"discrete": student.discrete, **facts}
        card |= {"files": {file.name: _sha(file) for file in files}}
        card |= {"golden": {key: np.asarray(x).tolist() for key, x in golden.items()}}
        made = beside / f"{name}{SUFFIX}"
        made.write_text(json.dumps(card | {"digest": _digest(card)}))
        check_export(made)
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in (*files, made):
            shutil.move(file, path.parent / file.name)
    return path.parent / f"{name}{SUFFIX}"


def check_export(path: str | Path) -> Parity:
    """Replays the golden observations of an artifact with its backend (gcc, numpy).

    C is compiled and run only where every file has the digest that the card says.

    Raises:
        ArtifactError: a file is missing, damaged or changed, or answers otherwise.
        UsageError: there is no C compiler.
    """
    path = Path(path)
    card = _card(path)
    for name, sha in card["files"].items():
        file = path.parent / name
        if Path(name).name != name or not file.is_file() or _sha(file) != sha:
            raise ArtifactError(f"{file} is missing or was changed. Export again.")
    golden = {key: np.asarray(x, np.float32) for key, x in card["golden"].items()}
    answer = _by_c if card["to"] == "c" else _by_numpy
    found = answer(path.parent, card, golden)
    wanted = golden["outputs"]
    error = float(np.abs(found - wanted).max())
    if card["discrete"]:
        equal = found.argmax(-1) == wanted.argmax(-1)
    else:
        equal = (np.abs(np.clip(found, -1, 1) - np.clip(wanted, -1, 1)) < _NEAR).all(-1)
    parity = Parity(error, float(equal.mean()), len(wanted))
    far = not card["int8"] and error > _ERROR * max(1.0, float(np.abs(wanted).max()))
    if far or not parity.equal >= _EQUAL[card["int8"]]:
        raise ArtifactError(
            f"{path} answers otherwise than its policy: outputs differ by up to {error:.2g}, "
            f"{100 * parity.equal:.1f} % of {parity.number} actions are equal. Export again"
            f"{', without int8' if card['int8'] else ''}."
        )
    return parity


# --- what the policy answers ---------------------------------------------------------------------


def _golden(policy: Policy, params: Any, observations: Any, resets: Any) -> dict[str, np.ndarray]:
    """obs [n, ...] as the exported network sees it, resets [n], outputs [n, A]."""
    if observations is None:
        made_for = spec(policy)
        if made_for is None:
            raise UsageError("the policy does not say what it sees: give observations=.")
        draw = np.random.default_rng(0)
        observations = jax.tree.map(lambda x: _random(draw, x), made_for.obs_spec)
    observations = jax.tree.map(lambda x: jnp.asarray(x)[:_GOLDEN], observations)
    number = len(jax.tree.leaves(observations)[0])
    first = np.arange(number) == 0
    resets = np.asarray(first if resets is None else resets[:number], np.float32)

    def one(carry, row):
        obs, reset = jax.tree.map(lambda x: x[None], row)
        carry, out = policy.step(params, carry, obs, reset)
        shown = out.policy.logits if hasattr(out.policy, "logits") else out.policy.mean
        return carry, shown[0]

    rows = (observations, jnp.asarray(resets))
    outputs = jax.jit(lambda carry: jax.lax.scan(one, carry, rows)[1])(policy.initial_carry(1))
    return {"obs": _seen(policy, observations), "resets": resets, "outputs": np.asarray(outputs)}


def _random(draw: np.random.Generator, leaf: Any) -> np.ndarray:
    shape = (_GOLDEN, *leaf.shape)
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return draw.standard_normal(shape).astype(np.float32)
    return (draw.random(shape) < 0.2).astype(leaf.dtype)


def _seen(policy: Policy, observations: Any) -> np.ndarray:
    """The one field that the policy selects."""
    if not isinstance(observations, dict):
        return np.asarray(observations, np.float32)
    given = dict(policy.description.keywords)
    name = given.get("select") or given.get("name")
    if name not in observations:
        raise UsageError("a policy of several observation arrays cannot be exported: select= one.")
    return np.asarray(observations[name], np.float32)


# --- backends ------------------------------------------------------------------------------------


def _write_c(path: Path, student: runtime.Student, shape: tuple, int8: bool) -> dict[str, Any]:
    made = c.source(path.name, student.layers, shape, student.discrete, int8=int8)
    path.with_suffix(".c").write_text(made.c)
    path.with_suffix(".h").write_text(made.h)
    return {"weight_bytes": int(made.weight_bytes), "memory": made.memory}


def _by_c(folder: Path, card: dict[str, Any], golden: dict[str, np.ndarray]) -> np.ndarray:
    """Compiled by the C compiler of this machine."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise UsageError("a C artifact is checked by compiling it: there is no cc. Install gcc.")
    name = card["name"]
    recurrent = card["memory"] > 0
    main = _MAIN.format(
        name=name,
        upper=name.upper(),
        declared=f"{name}_memory memory;" if recurrent else "",
        reset=f"if (row[0] > 0) {name}_reset(&memory);" if recurrent else "",
        given=", &memory" if recurrent else "",
    )
    flat = golden["obs"].reshape(len(golden["obs"]), -1)
    rows = np.concatenate([golden["resets"][:, None], flat], axis=1)
    with tempfile.TemporaryDirectory() as build:
        (Path(build) / "main.c").write_text(main)
        files = [str(Path(build) / "main.c"), str(folder.resolve() / f"{name}.c")]
        command = [compiler, *_FLAGS, "-I", str(folder.resolve()), *files, "-o", "replay", "-lm"]
        done = subprocess.run(command, cwd=build, capture_output=True, text=True)
        if done.returncode != 0:
            raise ArtifactError(f"{name}.c does not compile: {done.stderr.strip()[:200]}")
        ran = subprocess.run(
            [str(Path(build) / "replay")], input=rows.astype("<f4").tobytes(), capture_output=True
        )
    found = np.frombuffer(ran.stdout, "<f4")
    if ran.returncode != 0 or found.size != golden["outputs"].size:
        raise ArtifactError(f"{name}.c ends with {ran.returncode} on its golden observations.")
    return found.reshape(golden["outputs"].shape)


def _by_numpy(folder: Path, card: dict[str, Any], golden: dict[str, np.ndarray]) -> np.ndarray:
    student = runtime.load(folder / f"{card['name']}.npz")
    field = next((layer.then for layer in student.layers if layer.kind == "select"), None)
    found = []
    for obs, reset in zip(golden["obs"], golden["resets"], strict=True):
        if reset > 0:
            student.reset()
        found.append(student.outputs({field: obs[None]} if field else obs[None])[0])
    return np.stack(found)


# --- the card ------------------------------------------------------------------------------------


def _card(path: Path) -> dict[str, Any]:
    """The card of an artifact, whole and of this version."""
    if not path.name.endswith(SUFFIX):
        raise ArtifactError(f"{path} is no card of an export: give NAME{SUFFIX}.")
    try:
        card = json.loads(path.read_text())
        rest = {key: value for key, value in card.items() if key != "digest"}
        whole = card["format"] == _FORMAT and card["digest"] == _digest(rest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}. Export again.") from error
    if not whole:
        raise ArtifactError(f"{path} changed after it was exported, or another version wrote it.")
    return card


def _digest(card: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()


def _sha(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
