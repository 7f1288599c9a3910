"""A policy as C99: one .c and one .h, no malloc, weights in constant memory.

The layers are those of `jaxkd.runtime`. Each kind is one C function, written once and called for
every layer of its kind; activations go back and forth between two arrays on the stack.
"""

import math
from typing import NamedTuple

import numpy as np

from jaxkd.runtime import Layer

_ACTIVATIONS = {
    "tanh": "tanhf(v)",
    "relu": "v > 0 ? v : 0",
    "sigmoid": "sigmoid(v)",
    "silu": "v * sigmoid(v)",
    "swish": "v * sigmoid(v)",
    "elu": "v > 0 ? v : expm1f(v)",
    "leaky_relu": "v > 0 ? v : 0.01f * v",
}
_SIGMOID = "static float sigmoid(float v) { return 0.5f * (tanhf(0.5f * v) + 1); }\n"
_FUNCTIONS = {
    "standardise": """
static void standardise(const float *x, float *y, int n, const float *mean, const float *scale) {
  for (int i = 0; i < n; i++) {
    const float v = (x[i] - mean[i]) * scale[i];
    y[i] = v < -10 ? -10 : v > 10 ? 10 : v;
  }
}
""",
    "dense": """
static void dense(const float *x, float *y, int n, int m, const WEIGHT *w, SCALE const float *b) {
  for (int j = 0; j < m; j++) {
    float sum = 0;
    for (int i = 0; i < n; i++) sum += x[i] * w[i * m + j];
    y[j] = sum TIMES + (b ? b[j] : 0);
  }
}
""",
    "convolution": """
static void convolution(const float *x, float *y, int h, int w, int c, int f, const WEIGHT *k,
                        SCALE const float *b) {
  for (int row = 0; row < h - 2; row++)
    for (int col = 0; col < w - 2; col++)
      for (int j = 0; j < f; j++) {
        float sum = 0;
        for (int u = 0; u < 3; u++)
          for (int i = 0; i < 3 * c; i++)
            sum += x[((row + u) * w + col) * c + i] * k[(u * 3 * c + i) * f + j];
        y[(row * (w - 2) + col) * f + j] = sum TIMES + b[j];
      }
}
""",
    "norm": """
static void norm(float *x, int n, const float *scale, const float *shift) {
  float mean = 0, var = 0;
  for (int i = 0; i < n; i++) mean += x[i] / n;
  for (int i = 0; i < n; i++) var += (x[i] - mean) * (x[i] - mean) / n;
  for (int i = 0; i < n; i++) x[i] = (x[i] - mean) / sqrtf(var + 1e-6f) * scale[i] + shift[i];
}
""",
    "lstm": """
static void lstm(const float *g, const float *r, float *h, float *c, int n) {
  for (int i = 0; i < n; i++) {
    c[i] = sigmoid(g[i] + r[i]) * c[i]
         + sigmoid(g[n + i] + r[n + i]) * tanhf(g[3 * n + i] + r[3 * n + i]);
    h[i] = sigmoid(g[2 * n + i] + r[2 * n + i]) * tanhf(c[i]);
  }
}
""",
    "gru": """
static void gru(const float *g, const float *r, float *h, int n) {
  for (int i = 0; i < n; i++) {
    const float z = sigmoid(g[n + i] + r[n + i]);
    h[i] = (1 - z) * tanhf(g[2 * n + i] + sigmoid(g[i] + r[i]) * r[2 * n + i]) + z * h[i];
  }
}
""",
}


class Source(NamedTuple):
    """What is written, and what it takes."""

    c: str
    h: str
    weight_bytes: int  # of constant memory
    memory: int  # floats of a recurrent policy's memory


class _Writer:
    """Collects constants, the functions that are needed, and the calls of `NAME_outputs`."""

    def __init__(self, int8: bool):
        self.int8, self.used, self.constants, self.calls = int8, set(), [], []
        self.bytes, self.most, self.memory = 0, 0, 0
        self.here, self.there = "obs", "a"

    def array(self, values: np.ndarray, kind: str = "float") -> str:
        """Declares constants; their name."""
        name = f"w{len(self.constants)}"
        write = _number if kind == "float" else str
        text = ", ".join(write(v) for v in np.asarray(values).ravel().tolist())
        self.constants.append(f"static const {kind} {name}[] = {{{text}}};")
        self.bytes += np.size(values) * (4 if kind == "float" else 1)
        return name

    def kernel(self, kernel: np.ndarray) -> str:
        """The arguments of a kernel [..., out]: floats, or int8 and a scale for every output."""
        if not self.int8:
            return self.array(kernel)
        rows, scale = quantised(kernel)
        return f"{self.array(rows, 'signed char')}, {self.array(scale)}"

    def call(self, function: str, arguments: str, size: int) -> None:
        """One layer from where x is to the other array of at least `size` floats."""
        self.used.add(function)
        self.most = max(self.most, size)
        self.calls.append(f"{function}({self.here}, {self.there}, {arguments});")
        self.here, self.there = self.there, "b" if self.there == "a" else "a"

    def activate(self, activation: str, size: int) -> None:
        if activation:
            self.used.add(activation)
            self.calls.append(f"{activation}_all({self.here}, {size});")


def quantised(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 [..., out] and float32 scales [out]: symmetric, one scale an output channel.

    >>> quantised(np.array([[1.27, -0.5], [0.01, 0.25]], np.float32))[0].tolist()
    [[127, -127], [1, 64]]
    """
    largest = np.abs(kernel).reshape(-1, kernel.shape[-1]).max(0)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.round(kernel / scale).astype(np.int8), scale


def _number(value: float) -> str:
    text = f"{value:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def source(
    name: str, layers: tuple[Layer, ...], obs_shape: tuple[int, ...], discrete: bool, *, int8: bool
) -> Source:
    """The two files of a policy.

    Args:
        name: a C identifier, the prefix of all that is public.
        obs_shape: of one observation, which is given flat.
        discrete: `NAME_act` gives the best action; otherwise it writes means within [-1, 1].
        int8: kernels as int8 with one scale an output channel, a quarter of the bytes.
    """
    writer, shape = _Writer(int8), obs_shape
    for layer in layers:
        shape = _written(writer, layer, shape)
    size = math.prod(shape)
    memory = f", {name}_memory *memory" if writer.memory else ""
    outputs = [*_buffers(writer), *writer.calls, f"for (int i = 0; i < {size}; i++)"]
    outputs.append(f"  out[i] = {writer.here}[i];")
    text = [f'/* {name}: written by jaxkd, C99. */\n#include "{name}.h"\n#include <math.h>\n']
    text += [*writer.constants, _functions(writer)]
    signature = f"void {name}_outputs(const float *obs, float *out{memory})"
    text.append(f"{signature} {{\n  " + "\n  ".join(outputs) + "\n}\n")
    text.append(_act(name, size, discrete, memory))
    header = [f"#ifndef {name.upper()}_H\n#define {name.upper()}_H"]
    header.append(f"#define {name.upper()}_OBS {math.prod(obs_shape)}")
    header.append(f"#define {name.upper()}_OUT {size}")
    if writer.memory:
        header.append(f"typedef struct {{ float at[{writer.memory}]; }} {name}_memory;")
        header.append(f"void {name}_reset({name}_memory *memory); /* an episode begins */")
        text.append(
            f"void {name}_reset({name}_memory *memory) {{\n"
            f"  for (int i = 0; i < {writer.memory}; i++) memory->at[i] = 0;\n}}\n"
        )
    header += [f"{signature}; /* logits or means */", _act_signature(name, discrete, memory) + ";"]
    return Source("\n".join(text), "\n".join([*header, "#endif\n"]), writer.bytes, writer.memory)


def _written(writer: _Writer, layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Writes one layer; the shape behind it."""
    size = math.prod(shape)
    if layer.kind == "select":
        return shape  # the field is what the caller gives
    if layer.kind == "standardise":
        mean, scale = (writer.array(np.broadcast_to(x, shape)) for x in layer.weights)
        writer.call("standardise", f"{size}, {mean}, {scale}", size)
        return shape
    kernel, bias = layer.weights[:2]
    if layer.kind == "convolution":
        height, width, channels = shape
        shape = height - 2, width - 2, kernel.shape[-1]
        arguments = f"{height}, {width}, {channels}, {shape[-1]}, {writer.kernel(kernel)}"
        writer.call("convolution", f"{arguments}, {writer.array(bias)}", math.prod(shape))
        writer.activate(layer.then, math.prod(shape))
        return shape
    many = kernel.shape[-1]
    arguments = f"{size}, {many}, {writer.kernel(kernel)}, {writer.array(bias)}"
    writer.call("dense", arguments, many)
    if layer.kind in ("lstm", "gru"):
        return _cell(writer, layer)
    if layer.norm:
        writer.used.add("norm")
        scale, shift = map(writer.array, layer.norm)
        writer.calls.append(f"norm({writer.here}, {many}, {scale}, {shift});")
    writer.activate(layer.then, many)
    return (many,)


def _cell(writer: _Writer, layer: Layer) -> tuple[int]:
    """A recurrence behind its input's gates; x is then the memory's first part."""
    units, gates = layer.weights[2].shape
    writer.used |= {layer.kind, "sigmoid_"}
    writer.memory = 2 * units if layer.kind == "lstm" else units
    writer.most = max(writer.most, gates)
    recurrent = writer.kernel(layer.weights[2])
    inputs, other = writer.here, writer.there
    cell = ", memory->at + " + str(units) if layer.kind == "lstm" else ""
    writer.calls += [
        f"dense(memory->at, {other}, {units}, {gates}, {recurrent}, 0);",
        f"{layer.kind}({inputs}, {other}, memory->at{cell}, {units});",
    ]
    writer.here, writer.there = "memory->at", "a"
    return (units,)


def _buffers(writer: _Writer) -> list[str]:
    return [f"float a[{writer.most}], b[{writer.most}];", "(void)b;"]


def _functions(writer: _Writer) -> str:
    """The C functions that are called, and what they call."""
    activations = [name for name in _ACTIVATIONS if name in writer.used]
    needs = any("sigmoid(" in _ACTIVATIONS[name] for name in activations)
    text = _SIGMOID if needs or "sigmoid_" in writer.used else ""
    for name in activations:
        text += (
            f"static void {name}_all(float *x, int n) {{\n  for (int i = 0; i < n; i++) {{\n"
            f"    const float v = x[i];\n    x[i] = {_ACTIVATIONS[name]};\n  }}\n}}\n"
        )
    weight, scale, times = ("float", "", "")
    if writer.int8:
        weight, scale, times = "signed char", "const float *s,", "* s[j]"
    for name, function in _FUNCTIONS.items():
        if name in writer.used:
            text += function.replace("WEIGHT", weight).replace("SCALE ", f"{scale} ".lstrip())
            text = text.replace(" TIMES", f" {times}".rstrip())
    return text


def _act_signature(name: str, discrete: bool, memory: str) -> str:
    if discrete:
        return f"int {name}_act(const float *obs{memory})"
    return f"void {name}_act(const float *obs, float *action{memory})"


def _act(name: str, size: int, discrete: bool, memory: str) -> str:
    given = ", memory" if memory else ""
    signature = _act_signature(name, discrete, memory)
    if discrete:
        return (
            f"{signature} {{\n  float out[{size}];\n  int best = 0;\n"
            f"  {name}_outputs(obs, out{given});\n"
            f"  for (int i = 1; i < {size}; i++)\n    if (out[i] > out[best]) best = i;\n"
            f"  return best;\n}}\n"
        )
    return (
        f"{signature} {{\n  {name}_outputs(obs, action{given});\n"
        f"  for (int i = 0; i < {size}; i++)\n"
        f"    action[i] = action[i] < -1 ? -1 : action[i] > 1 ? 1 : action[i];\n}}\n"
    )
