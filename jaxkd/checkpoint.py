"""Policies as files to share and deploy: arrays in an `.npz` without pickle, and a JSON card that says what they are."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import networks
from jaxkd.base import ArtifactError, Policy, UsageError

_FORMAT = 1


def save_policy(path: str | Path, policy: Policy, params: Any, **notes: Any) -> Path:
    """Writes `<path>.npz` (every array under its path in `params`) and `<path>.json` (network, specs, digest, notes).

    Args:
        path: where; a suffix `.npz` is optional, folders are made.
        policy: of a built-in factory (`networks.mlp`, `networks.lstm`, `networks.multihead`, ...), so that `load_policy` can make it again.
        params: the policy's, of ONE seed.
        notes: JSON values for the card, such as return_mean=498.5.

    Returns:
        the path of the `.npz`.

    Raises:
        UsageError: for a policy that cannot be made again from a description, or params that are not its own.

    >>> import jaxkd, tempfile
    >>> policy = jaxkd.networks.mlp(jaxkd.envs.make("CartPole-v1", num_envs=2), hidden=(8,))
    >>> file = save_policy(tempfile.mkdtemp() + "/student", policy, policy.init(jaxkd.seeds(0, 1)[0]))
    >>> policy, params = load_policy(file)
    """
    if not policy.description:
        raise UsageError(
            "this policy has no description, so load_policy could not make it again; save one of jaxkd.networks."
        )
    arrays = _flat(params)
    if _shapes(arrays) != _expected(policy):
        raise UsageError(
            f"params do not fit the policy: expected {_expected(policy)}, got {_shapes(arrays)}. Save one seed at a time."
        )
    _rebuild(policy.description)
    path = Path(path).with_suffix(".npz") if Path(path).suffix == ".npz" else Path(f"{path}.npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    card = {
        "format": _FORMAT,
        "network": policy.description,
        "digest": digest(arrays),
        "notes": notes,
    }
    text = json.dumps(card, indent=1)
    with path.open("wb") as file:
        np.savez(file, **arrays)
    path.with_suffix(".json").write_text(text)
    return path


def load_policy(path: str | Path) -> tuple[Policy, Any]:
    """(policy, params) from the files of `save_policy`.

    Raises:
        ArtifactError: where a file is missing or damaged, or the arrays are not those the card was written for.
    """
    path = Path(path) if Path(path).suffix == ".npz" else Path(f"{path}.npz")
    try:
        card = json.loads(path.with_suffix(".json").read_text())
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise ArtifactError(
            f"no file {error.filename!r}. A policy is two files, NAME.npz and NAME.json."
        ) from error
    except (
        OSError,
        ValueError,
        KeyError,
        zipfile.BadZipFile,
        EOFError,
        NotImplementedError,
    ) as error:
        raise ArtifactError(
            f"{path} or its card is damaged ({str(error).splitlines()[0]}). Save it again."
        ) from error
    if not isinstance(card, dict) or card.get("format") != _FORMAT:
        raise ArtifactError(
            f"{path.with_suffix('.json')} is not the card of a policy (format {_FORMAT})."
        )
    if card.get("digest") != digest(arrays):
        raise ArtifactError(
            f"{path} does not fit the digest in its card: the file changed after it was saved. Take the original."
        )
    try:
        policy = _rebuild(_tuples(card["network"]))
        expected = _expected(policy)
    except (UsageError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ArtifactError(
            f"{path.with_suffix('.json')} describes no network that this version can make: {error}."
        ) from error
    if _shapes(arrays) != expected:
        raise ArtifactError(
            f"{path} does not fit its network: expected {expected}, got {_shapes(arrays)}."
        )
    structure = jax.tree.structure(jax.eval_shape(policy.init, jax.random.key(0)))
    return policy, jax.tree.unflatten(structure, [jnp.asarray(arrays[name]) for name in expected])


def digest(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 over name, dtype, shape and bytes of every array, in the order of names."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def _flat(params: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


def _shapes(arrays: dict[str, Any]) -> dict[str, tuple]:
    return {name: (tuple(x.shape), np.dtype(x.dtype).name) for name, x in arrays.items()}


def _expected(policy: Policy) -> dict[str, tuple]:
    leaves = jax.tree_util.tree_flatten_with_path(jax.eval_shape(policy.init, jax.random.key(0)))[0]
    return _shapes(
        {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    )


def _rebuild(description: tuple) -> Policy:
    """The policy a description stands for."""
    name, keywords = description[0], dict(description[1])
    spec = networks.spec_of(description)
    del keywords["obs"], keywords["action"]
    factories = {
        name: getattr(networks, name) for name in ("mlp", "cnn", "lstm", "gru", "multihead")
    }
    if name not in factories:
        raise UsageError(f"unknown network {name!r}")
    if "network" in keywords:
        keywords["network"] = factories[keywords["network"]]
    activation = keywords["activation"]
    found = getattr(nn, activation, None) or getattr(jnp, activation, None)
    if found is None:
        raise UsageError(
            f"activation {activation!r} is no function of flax.linen or jax.numpy, so it cannot be saved by name"
        )
    return factories[name](
        spec, **{**keywords, "activation": found, "dtype": jnp.dtype(keywords["dtype"])}
    )


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
