"""Policies as files to share and deploy: arrays without pickle, and a JSON card about them.

`NAME.json` is the card: how to make the network again (`description.py`), notes, and a digest over
itself and every array. `NAME.npz` holds the arrays, each under its path in the params.
"""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxkd import check, networks
from jaxkd.base import ArtifactError, Box, Discrete, Policy, State, UsageError
from jaxkd.description import Spec, plain, rebuild
from jaxkd.runtime import digest

_FORMAT = 2
_LARGEST_CARD = 2**24  # bytes; cards have some thousand
_NEW = ".new"  # what is written beside has this suffix until it is whole


def save_policy(path: str | Path, policy: Policy, params: Any, **notes: Any) -> Path:
    """Writes `<path>.npz` (every array under its path in `params`) and `<path>.json` (the card).

    What was there before is replaced only when both new files are whole on the disk.

    Args:
        path: where; a suffix `.npz` is optional, folders are made.
        policy: made by factories of `jaxkd.networks`, wrapped and combined at will, or by your own
            ones that are `described`; functions in it are defined at the top of a module.
        params: the policy's, of ONE seed.
        notes: JSON values for the card, such as return_mean=498.5.

    Returns:
        the path of the `.npz`.

    Raises:
        UsageError: for a policy that cannot be made again, or params that are not its own.

    >>> import jaxkd, tempfile
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    >>> policy = jaxkd.networks.mlp(env, hidden=(8,))
    >>> params = policy.init(jaxkd.seeds(0, 1)[0])
    >>> file = save_policy(tempfile.mkdtemp() + "/student", policy, params)
    >>> policy, params = load_policy(file)
    """
    check.kind("policy", policy, Policy, "a Policy (jaxkd.networks.mlp and others)")
    if isinstance(params, State):
        raise UsageError("params are a State. Give state.params, of one seed.")
    arrays = _flat(params)
    _check_own(policy, arrays)
    path = _arrays_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    card = {"format": _FORMAT, "network": _written(policy), "notes": notes}
    card = json.loads(json.dumps(card, default=_note))  # as it will be read
    text = json.dumps(card | {"digest": digest(arrays, card)}, indent=1)
    files = {path.with_suffix(".json"): text.encode(), path: arrays}
    _replace(files)
    return path


def load_policy(path: str | Path) -> tuple[Policy, Any]:
    """(policy, params) from the files of `save_policy`, of this version or an older one.

    Nothing in the files is run as code. A policy with functions or modules of your own needs their
    module imported first.

    Raises:
        ArtifactError: where a file is missing, damaged or changed after it was saved.
    """
    path = _arrays_path(path)
    card_path = path.with_suffix(".json")
    card = _guarded(card_path, _read_card)
    if not isinstance(card, dict) or card.get("format") not in (1, _FORMAT):
        found = card.get("format") if isinstance(card, dict) else None
        raise ArtifactError(
            f"{card_path} is not the card of a policy that this version reads (format {found!r}, "
            f"known are 1 and {_FORMAT})."
        )
    arrays = _fitting(path, card)
    try:
        policy = _policy(card)
        expected = _expected(policy)
    except Exception as error:  # whatever a factory raises when a card gives it nonsense
        raise ArtifactError(
            f"{card_path} describes no network that can be made here: {check.line(error)}"
        ) from error
    arrays = {name: _restored(x, expected.get(name)) for name, x in arrays.items()}
    different = check.difference(expected, _shapes(arrays))
    if different:
        raise ArtifactError(f"{path} does not fit its network: {different}.")
    for name, array in arrays.items():
        if _has_nan(array):
            raise ArtifactError(f"{path} holds nan in {name!r}: a diverged policy. Take another.")
    structure = jax.tree.structure(jax.eval_shape(policy.init, jax.random.key(0)))
    return policy, jax.tree.unflatten(structure, [jnp.asarray(arrays[name]) for name in expected])


# --- what a policy is ---------------------------------------------------------------------------


def _written(policy: Policy) -> Any:
    """The JSON value of a policy, after a look whether it leads back to this policy."""
    value = plain(policy, "policy")
    again = rebuild(value)
    for name in ("init", "initial_carry", "step", "unroll"):
        ours, theirs = getattr(policy, name), getattr(again, name)
        if getattr(ours, "__qualname__", "") != getattr(theirs, "__qualname__", ""):
            raise UsageError(
                f"the policy's {name} is not the one that its description makes: it was replaced "
                f"afterwards. Make the change in a factory of your own that is `described`."
            )
    different = check.difference(_expected(policy), _expected(again))
    if different:
        raise UsageError(f"the policy's description makes another one: {different}.")
    return value


def _policy(card: dict[str, Any]) -> Policy:
    made = _first_format(*card["network"]) if card["format"] == 1 else rebuild(card["network"])
    if not isinstance(made, Policy):
        raise UsageError(f"it describes a {type(made).__name__}, no policy")
    return made


def _first_format(factory: str, pairs: list) -> Policy:
    """A network of a format 1 card: [name, [[keyword, value], ...]], functions by bare names."""
    if factory not in ("mlp", "cnn", "lstm", "gru", "multihead"):
        raise UsageError(f"unknown network {factory!r}")
    given: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in pairs}
    obs, (kind, *size) = given.pop("obs"), given.pop("action")
    action_space = Discrete(*size) if kind == "discrete" else Box(tuple(size))
    given["activation"] = _named_activation(given["activation"])
    given["dtype"] = jnp.dtype(given["dtype"])
    if "network" in given:
        if given["network"] not in ("mlp", "cnn", "lstm", "gru"):
            raise UsageError(f"unknown network {given['network']!r}")
        given["network"] = getattr(networks, given["network"])
    env = Spec(_first_format_obs(obs), action_space)
    return getattr(networks, factory)(env, **given)


def _named_activation(name: str) -> Callable:
    for module in ("jax.nn", "jax.numpy", "flax.linen"):
        try:
            return rebuild({"function": f"{module}:{name}"})
        except UsageError:
            continue
    raise UsageError(f"activation {name!r} is no function of jax.nn, jax.numpy or flax.linen")


def _first_format_obs(leaves: Any) -> Any:
    """The observation's specification from its leaves (path, shape, dtype): one array or dicts."""
    obs: Any = {}
    for path, shape, dtype in leaves:
        spec = jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
        if not path:
            return spec
        *folders, name = path.split("/")
        place = obs
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = spec
    return obs


# --- arrays -------------------------------------------------------------------------------------


def _flat(params: Any) -> dict[str, np.ndarray]:
    arrays = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = _name(path)
        if isinstance(leaf, Tracer) or not hasattr(leaf, "dtype"):
            raise UsageError(
                f"params[{name!r}] is a {type(leaf).__name__}, no array. Give the policy's own "
                f"params, outside of jit."
            )
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) or np.dtype(leaf.dtype).hasobject:
            raise UsageError(f"params[{name!r}] is of {leaf.dtype}, which a file cannot hold.")
        array = np.asarray(leaf)
        if _has_nan(array):
            raise UsageError(f"params[{name!r}] holds nan: the policy has diverged.")
        # numpy's format has no bfloat16: its bits are kept as integers
        arrays[name] = array.view(f"u{array.itemsize}") if array.dtype.kind == "V" else array
    return arrays


def _name(path: Any) -> str:
    """The path of an array, "params/actor/Dense_0/kernel"; a "/" inside a key is "~1"."""
    keys = [jax.tree_util.keystr((entry,), simple=True) for entry in path]
    return "/".join(key.replace("~", "~0").replace("/", "~1") for key in keys)


def _has_nan(array: np.ndarray) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.inexact) and np.isnan(array).any())


def _restored(array: np.ndarray, expected: tuple | None) -> np.ndarray:
    """Bits of a bfloat16 as one."""
    dtype = jnp.dtype(expected[1]) if expected else array.dtype
    is_packed = dtype.kind == "V" and array.dtype == np.dtype(f"u{dtype.itemsize}")
    return array.view(dtype) if is_packed else array


def _shapes(arrays: dict[str, Any]) -> dict[str, tuple]:
    return {name: (tuple(x.shape), np.dtype(x.dtype).name) for name, x in arrays.items()}


def _expected(policy: Policy) -> dict[str, tuple]:
    """{name: (shape, dtype)} of the policy's params, in their order."""
    spec = jax.eval_shape(policy.init, jax.random.key(0))
    leaves = jax.tree_util.tree_flatten_with_path(spec)[0]
    return _shapes({_name(path): leaf for path, leaf in leaves})


def _check_own(policy: Policy, arrays: dict[str, np.ndarray]) -> None:
    expected = _expected(policy)
    restored = {name: _restored(x, expected.get(name)) for name, x in arrays.items()}
    different = check.difference(expected, _shapes(restored))
    if different:
        raise UsageError(
            f"params do not fit the policy: {different}. Save the params of one seed at a time."
        )


# --- files --------------------------------------------------------------------------------------


def _arrays_path(path: str | Path) -> Path:
    return Path(path) if Path(path).suffix == ".npz" else Path(f"{path}.npz")


def _note(value: Any) -> Any:
    """A numpy or jax number or array of the notes, as JSON has it."""
    if hasattr(value, "tolist") and not isinstance(value, Tracer):
        return value.tolist()
    raise UsageError(f"notes are JSON values, got {type(value).__name__}.")


def _replace(files: dict[Path, Any]) -> None:
    """Writes every file beside its place, then renames them in order: the card, then the arrays.

    Should the process end between the two, the card's digest is that of the arrays in
    NAME.npz.new, where `load_policy` looks too.
    """
    beside = {path: Path(f"{path}{_NEW}") for path in files}
    try:
        for path, content in files.items():
            with beside[path].open("wb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    _write_arrays(file, content)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        for path in beside.values():
            path.unlink(missing_ok=True)
        names = " and ".join(map(str, files))
        raise OSError(
            error.errno, f"{names} not written: {os.strerror(error.errno or 0)}"
        ) from error
    for path, new in beside.items():
        new.replace(path)


def _write_arrays(file: Any, arrays: dict[str, np.ndarray]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def _fitting(path: Path, card: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays that the card's digest is of, see `_replace`."""
    covered = card if card["format"] > 1 else None
    new = Path(f"{path}{_NEW}")
    if new.exists():
        try:
            arrays = _guarded(new, _read_arrays)
        except ArtifactError:
            arrays = {}  # half written: the old files are whole
        if digest(arrays, covered) == card.get("digest"):
            return arrays
    arrays = _guarded(path, _read_arrays)
    if digest(arrays, covered) != card.get("digest"):
        raise ArtifactError(
            f"{path} and its card do not fit the digest: one of them changed after it was saved. "
            f"Take the original."
        )
    return arrays


def _guarded(path: Path, read: Callable[[Path], Any]) -> Any:
    """What `read` reads of a regular file; whatever goes wrong is one line."""
    try:
        there, regular = path.exists(), path.is_file()
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise ArtifactError(f"no file {str(path)[:99]!r}: {error.strerror}.") from error
    if not there:
        raise ArtifactError(
            f"no file {str(path)!r}. A policy is two files, NAME.npz and NAME.json."
        )
    if not regular:
        raise ArtifactError(f"{path} is no regular file.")  # a pipe would be waited for
    try:
        return read(path)
    except Exception as error:  # json, zipfile and numpy raise a dozen kinds for damaged files
        raise ArtifactError(f"{path} is damaged ({check.line(error)}) Save it again.") from error


def _read_card(path: Path) -> Any:
    if path.stat().st_size > _LARGEST_CARD:
        raise ValueError(f"a card of more than {_LARGEST_CARD} bytes")
    return json.loads(path.read_text(encoding="utf-8"))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array; none is larger than the file, whatever its header claims."""
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                of_version = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }
                shape, _, dtype = of_version[version](member)
                size = int(np.prod(shape, dtype=object)) * dtype.itemsize
                packed = info.compress_type != zipfile.ZIP_STORED
                if packed or size > info.file_size or size > path.stat().st_size:
                    raise ValueError(f"{info.filename} claims {size} bytes")
            with archive.open(info) as member:
                array = np.lib.format.read_array(member, allow_pickle=False)
            arrays[info.filename.removesuffix(".npy")] = array
    return arrays
