"""A saved policy on a small computer: numpy alone, no jax.

    from jaxkd.runtime import load
    student = load("student.npz")
    student.reset()                       # at the beginning of an episode
    action = student.act(obs)             # the best one; act(obs, np.random.default_rng(0)) draws

Reads the files of `jaxkd.save_policy`, checks their digest, and computes `mlp`, `cnn`, `lstm` and
`gru` in float32, with their normaliser and the selection of a field. Value heads are left out.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_FORMAT = 2
_CLIP, _EPSILON = 10.0, 1e-8  # of standardised observations
_LAYER_NORM = 1e-6  # flax's epsilon
_ACTIVATIONS: dict[str, Callable] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: _sigmoid(x),
    "silu": lambda x: x * _sigmoid(x),
    "swish": lambda x: x * _sigmoid(x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "leaky_relu": lambda x: np.where(x > 0, x, np.float32(0.01) * x),
}


class Layer(NamedTuple):
    """One step of a network, from x [n, ...] to x [n, ...]."""

    kind: str  # select, standardise, convolution, dense, lstm, gru
    weights: tuple[np.ndarray, ...] = ()  # kernel first
    norm: tuple[np.ndarray, ...] = ()  # scale and bias of a layer norm behind a dense layer
    then: str = ""  # the activation, "" none; of select the field


class Student:
    """A policy with its memory. `card` is the JSON beside the arrays, notes included; `layers` are
    what it computes.
    """

    def __init__(self, card: dict[str, Any], arrays: dict[str, np.ndarray]):
        self.card = card
        self.layers = layers(card["network"], arrays)
        fields = _specification(card["network"])["action_space"]["fields"]
        self.discrete = "n" in fields
        self._log_std = next((x for k, x in arrays.items() if k.endswith("params/log_std")), None)
        self._carry: Any = None

    def reset(self) -> None:
        """Forgets: an episode begins."""
        self._carry = None

    def outputs(self, obs: Any) -> np.ndarray:
        """Logits [n, A], or means [n, D], of a batch of observations [n, ...]; a memory goes on."""
        x = obs
        for layer in self.layers:
            if layer.kind in _CELLS:
                self._carry = _CELLS[layer.kind](self._carry, x, *layer.weights)
                x = self._carry[0]
            else:
                x = _LAYERS[layer.kind](x, layer)
        return x

    def act(self, obs: Any, rng: np.random.Generator | None = None) -> Any:
        """The action for ONE observation: an int, or float32 [D] in [-1, 1].

        Args:
            rng: draws from the policy; None: its best action.
        """
        one = {k: np.asarray(x)[None] for k, x in obs.items()} if isinstance(obs, dict) else None
        out = self.outputs(np.asarray(obs)[None] if one is None else one)[0]
        if self.discrete:
            if rng is not None:
                out = out + rng.gumbel(size=out.shape)
            return int(np.argmax(out))
        if rng is not None and self._log_std is not None:
            out = out + np.exp(self._log_std) * rng.standard_normal(out.shape)
        return np.clip(out, -1, 1).astype(np.float32)


def load(path: str | Path) -> Student:
    """The policy of `NAME.npz` and `NAME.json`.

    Raises:
        ValueError: a file is missing, damaged or changed, or the network is of another kind.
    """
    path = Path(path).with_suffix(".npz")
    try:
        card = json.loads(path.with_suffix(".json").read_text())
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # json, zipfile and numpy raise a dozen kinds for damaged files
        raise ValueError(f"{path} and its card cannot be read: {error}") from error
    if card.get("format") != _FORMAT:
        raise ValueError(
            f"{path} has format {card.get('format')!r}, this reads {_FORMAT}. Save it again: "
            f"jaxkd.save_policy(path, *jaxkd.load_policy(path))."
        )
    if digest(arrays, card) != card.get("digest"):
        raise ValueError(f"{path} and its card do not fit the digest. Take the original.")
    return Student(card, arrays)


def digest(arrays: dict[str, np.ndarray], card: dict[str, Any] | None = None) -> str:
    """SHA-256 over the card (format 2) and over name, dtype, shape and bytes of every array."""
    sha = hashlib.sha256()
    if card is not None:
        rest = {key: value for key, value in card.items() if key != "digest"}
        sha.update(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


# --- what a card describes -----------------------------------------------------------------------


def _specification(network: dict[str, Any]) -> dict[str, Any]:
    """The fields of the environment's specification, inside of wrappers too."""
    keywords = network["keywords"]
    return _specification(keywords["policy"]) if "policy" in keywords else keywords["env"]["fields"]


def layers(network: dict[str, Any], arrays: dict[str, np.ndarray]) -> tuple[Layer, ...]:
    """The layers of a described network, from the observation to logits or means.

    Raises:
        ValueError: it is of another kind, or has an activation that is not computed here.
    """
    kind, given = network["factory"].rpartition(":")[2], network["keywords"]
    if kind == "select":
        return Layer("select", then=given["name"]), *layers(given["policy"], arrays)
    if kind == "normalised":
        return _standardise(arrays), *layers(given["policy"], _below("policy", arrays))
    if kind not in ("mlp", "cnn", "lstm", "gru"):
        raise ValueError(f"{kind!r} is not computed here: mlp, cnn, lstm and gru are.")
    activation = given["activation"]["function"].rpartition(":")[2]
    if activation not in _ACTIVATIONS:
        raise ValueError(f"{activation!r} is not computed here: {', '.join(_ACTIVATIONS)} are.")
    spec = given["env"]["fields"]["obs_spec"]
    if "shape" not in (spec["dict"][given["select"]] if given["select"] else spec):
        raise ValueError("observations of several arrays are not computed here: select= one.")
    before = [Layer("select", then=given["select"])] if given["select"] else []
    weights = arrays
    if given["normalise"]:
        before.append(_standardise(arrays))
        weights = _below("policy", arrays)
    weights = _below("params", weights)
    torso = _torso(_below("actor", weights), activation)
    cell = [_cell(kind, weights)] if kind in ("lstm", "gru") else []
    return *before, *torso, *cell, Layer("dense", _dense_of(weights, "policy"))


def _below(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k[len(name) + 1 :]: x for k, x in arrays.items() if k.startswith(f"{name}/")}


def _standardise(arrays: dict[str, np.ndarray]) -> Layer:
    scale = 1 / np.sqrt(arrays["statistics/var"] + np.float32(_EPSILON))
    return Layer("standardise", (arrays["statistics/mean"], scale))


def _torso(weights: dict[str, np.ndarray], activation: str) -> list[Layer]:
    """Convolutions, then dense layers."""
    made, number = [], lambda kind: sum(name.startswith(kind) for name in weights) // 2
    for i in range(number("conv_")):
        kernel_and_bias = weights[f"conv_{i}"], weights[f"conv_{i}_bias"]
        made.append(Layer("convolution", kernel_and_bias, then=activation))
    for i in range(number("Dense_")):
        names = f"LayerNorm_{i}/scale", f"LayerNorm_{i}/bias"
        norm = tuple(weights[name] for name in names if name in weights)
        made.append(Layer("dense", _dense_of(weights, f"Dense_{i}"), norm, activation))
    return made


def _dense_of(weights: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    return weights[f"{name}/kernel"], weights[f"{name}/bias"]


def _cell(kind: str, weights: dict[str, np.ndarray]) -> Layer:
    return Layer(kind, (*_dense_of(weights, "input"), weights["recurrent"]))


# --- what layers compute -------------------------------------------------------------------------


def _standardised(obs: Any, layer: Layer) -> np.ndarray:
    mean, scale = layer.weights
    return np.clip((np.asarray(obs, np.float32) - mean) * scale, -_CLIP, _CLIP)


def _convolution(x: Any, layer: Layer) -> np.ndarray:
    """VALID: [n, H, W, C], kernel [3, 3, C, F] -> [n, H - 2, W - 2, F]."""
    kernel, bias = layer.weights
    x = np.asarray(x, np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))
    out = np.einsum("nhwckl,klcf->nhwf", windows, kernel, optimize=True) + bias
    return _ACTIVATIONS[layer.then](out)


def _dense(x: Any, layer: Layer) -> np.ndarray:
    kernel, bias = layer.weights
    x = np.asarray(x, np.float32).reshape(len(x), -1) @ kernel + bias
    if layer.norm:
        scale, shift = layer.norm
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt(np.square(centred).mean(-1, keepdims=True) + _LAYER_NORM)
        x = centred / deviation * scale + shift
    return _ACTIVATIONS[layer.then](x) if layer.then else x


_LAYERS: dict[str, Callable] = {
    "select": lambda obs, layer: obs[layer.then],
    "standardise": _standardised,
    "convolution": _convolution,
    "dense": _dense,
}


def _inputs(carry: Any, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, size: int) -> tuple:
    """The memory, zeros at first, and what the layer below adds to every gate."""
    zeros = np.zeros((len(x), size), np.float32)
    x = np.asarray(x, np.float32).reshape(len(x), -1)
    return (zeros, zeros) if carry is None else carry, x @ kernel + bias


def _lstm(carry, x, kernel, bias, recurrent):
    """As in `networks.recurrent`, like `_gru`."""
    (h, c), inputs = _inputs(carry, x, kernel, bias, len(recurrent))
    f, i, o, new = np.split(inputs + h @ recurrent, 4, axis=-1)
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(new)
    return _sigmoid(o) * np.tanh(c), c


def _gru(carry, x, kernel, bias, recurrent):
    (h, *_), inputs = _inputs(carry, x, kernel, bias, len(recurrent))
    (r, z, n), (ur, uz, un) = (np.split(x, 3, axis=-1) for x in (inputs, h @ recurrent))
    r, z = _sigmoid(r + ur), _sigmoid(z + uz)
    return ((1 - z) * np.tanh(n + r * un) + z * h,)


_CELLS: dict[str, Callable] = {"lstm": _lstm, "gru": _gru}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + np.float32(1))
