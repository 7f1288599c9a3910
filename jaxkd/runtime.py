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


class Network(NamedTuple):
    """Observations [n, ...] and a memory to logits or means [n, A] and the next memory."""

    call: Callable  # (carry, obs [n, ...]) -> (carry, [n, A or D])
    initial: Callable  # (n) -> carry


class Student:
    """A policy with its memory. `card` is the JSON beside the arrays, notes included."""

    def __init__(self, card: dict[str, Any], arrays: dict[str, np.ndarray]):
        self.card = card
        self._network = _made(card["network"], arrays)
        fields = _specification(card["network"])["action_space"]["fields"]
        self._discrete = "n" in fields
        self._log_std = next((x for k, x in arrays.items() if k.endswith("params/log_std")), None)
        self._carry: Any = None

    def reset(self) -> None:
        """Forgets: an episode begins."""
        self._carry = None

    def outputs(self, obs: Any) -> np.ndarray:
        """Logits [n, A], or means [n, D], of a batch of observations [n, ...]; a memory goes on."""
        number = len(next(iter(obs.values()))) if isinstance(obs, dict) else len(obs)
        carry = self._network.initial(number) if self._carry is None else self._carry
        self._carry, out = self._network.call(carry, obs)
        return out

    def act(self, obs: Any, rng: np.random.Generator | None = None) -> Any:
        """The action for ONE observation: an int, or float32 [D] in [-1, 1].

        Args:
            rng: draws from the policy; None: its best action.
        """
        one = {k: np.asarray(x)[None] for k, x in obs.items()} if isinstance(obs, dict) else None
        out = self.outputs(np.asarray(obs)[None] if one is None else one)[0]
        if self._discrete:
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


# --- networks ------------------------------------------------------------------------------------


def _specification(network: dict[str, Any]) -> dict[str, Any]:
    """The fields of the environment's specification, inside of wrappers too."""
    keywords = network["keywords"]
    return _specification(keywords["policy"]) if "policy" in keywords else keywords["env"]["fields"]


def _made(network: dict[str, Any], arrays: dict[str, np.ndarray]) -> Network:
    """What a card describes."""
    kind, given = network["factory"].rpartition(":")[2], network["keywords"]
    if kind == "select":
        return _select(_made(given["policy"], arrays), given["name"])
    if kind == "normalised":
        return _standardised(_made(given["policy"], _below("policy", arrays)), arrays)
    if kind not in ("mlp", "cnn", "lstm", "gru"):
        raise ValueError(f"{kind!r} is not computed here: mlp, cnn, lstm and gru are.")
    weights = _below("policy", arrays) if given["normalise"] else arrays
    weights = _below("params", weights)
    rank = _rank(given["env"]["fields"]["obs_spec"], given["select"])
    activation = given["activation"]["function"].rpartition(":")[2]
    if activation not in _ACTIVATIONS:
        raise ValueError(f"{activation!r} is not computed here: {', '.join(_ACTIVATIONS)} are.")
    torso = _torso(_below("actor", weights), _ACTIVATIONS[activation], rank)
    made = _memory(kind, torso, weights) if kind in ("lstm", "gru") else _headed(torso, weights)
    made = _standardised(made, arrays) if given["normalise"] else made
    return _select(made, given["select"]) if given["select"] else made


def _below(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k[len(name) + 1 :]: x for k, x in arrays.items() if k.startswith(f"{name}/")}


def _rank(spec: Any, field: str | None) -> int:
    spec = spec["dict"][field] if field else spec
    if "shape" not in spec:
        raise ValueError("observations of several arrays are not computed here: select= one.")
    return len(spec["shape"])


def _dense(weights: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]


def _torso(weights: dict[str, np.ndarray], activation: Callable, rank: int) -> Callable:
    """obs [n, ...] -> features [n, F]: convolutions, then dense layers."""
    convolutions = sum(name.startswith("conv_") and name.endswith("_bias") for name in weights)
    layers = sum(name.startswith("Dense_") and name.endswith("/bias") for name in weights)

    def features(obs):
        x = np.asarray(obs, np.float32)
        for i in range(convolutions):
            x = activation(_convolved(x, weights[f"conv_{i}"]) + weights[f"conv_{i}_bias"])
        x = x.reshape(len(x), -1) if rank or x.ndim > 1 else x[:, None]
        for i in range(layers):
            x = _dense(weights, f"Dense_{i}", x)
            if f"LayerNorm_{i}/scale" in weights:
                x = _layer_norm(x, weights[f"LayerNorm_{i}/scale"], weights[f"LayerNorm_{i}/bias"])
            x = activation(x)
        return x

    return features


def _convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A VALID convolution: [n, H, W, C], [3, 3, C, F] -> [n, H - 2, W - 2, F]."""
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))
    return np.einsum("nhwckl,klcf->nhwf", windows, kernel, optimize=True)


def _layer_norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return (
        centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + _LAYER_NORM) * scale + bias
    )


def _headed(torso: Callable, weights: dict[str, np.ndarray]) -> Network:
    return Network(lambda carry, obs: ((), _dense(weights, "policy", torso(obs))), lambda n: ())


def _memory(kind: str, torso: Callable, weights: dict[str, np.ndarray]) -> Network:
    """An LSTM's or a GRU's recurrence, see `networks.recurrent`."""
    kernel = weights["recurrent"]

    def call(carry, obs):
        inputs = _dense(weights, "input", torso(obs))
        carry = (_lstm if kind == "lstm" else _gru)(carry, inputs, kernel)
        return carry, _dense(weights, "policy", carry[0])

    return Network(call, lambda n: (np.zeros((n, len(kernel)), np.float32),) * 2)


def _lstm(carry, inputs, kernel):
    h, c = carry
    f, i, o, new = np.split(inputs + h @ kernel, 4, axis=-1)
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(new)
    return _sigmoid(o) * np.tanh(c), c


def _gru(carry, inputs, kernel):
    h = carry[0]
    (r, z, n), (ur, uz, un) = (np.split(x, 3, axis=-1) for x in (inputs, h @ kernel))
    r, z = _sigmoid(r + ur), _sigmoid(z + uz)
    return ((1 - z) * np.tanh(n + r * un) + z * h,)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + np.float32(1))


def _standardised(network: Network, arrays: dict[str, np.ndarray]) -> Network:
    mean, scale = arrays["statistics/mean"], 1 / np.sqrt(arrays["statistics/var"] + _EPSILON)
    seen = lambda obs: np.clip((np.asarray(obs, np.float32) - mean) * scale, -_CLIP, _CLIP)
    return network._replace(call=lambda carry, obs: network.call(carry, seen(obs)))


def _select(network: Network, name: str) -> Network:
    return network._replace(call=lambda carry, obs: network.call(carry, obs[name]))
