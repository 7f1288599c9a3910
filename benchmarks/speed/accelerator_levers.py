"""Rows of accelerator.py that ask what could make it faster, and Rejax on the same device."""

import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from accelerator_inside import SHARED_MEMORY, in_a_child
from programs import (
    ROUNDS,
    ROW_SECONDS,
    SAMPLE,
    Entries,
    Size,
    build,
    measured,
    side_by_side,
    timed,
    work,
)

FLAGS = {  # of XLA, each in a process of its own
    "as it is": "",
    "loops as command buffers": "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL",
    "no command buffers": "--xla_gpu_enable_command_buffer=",
    "small command buffers too": "--xla_gpu_graph_min_graph_size=1",
    "loops unrolled twice": "--xla_gpu_enable_while_loop_unrolling=WHILE_LOOP_UNROLLING_DOUBLE_BUFFER",
}


def unrolled(times: int) -> Callable[[], Any]:
    """The rollout's scan, which alone has a body of that file."""

    @contextlib.contextmanager
    def change():
        import jax

        scan = jax.lax.scan

        def longer(body, *args, **keywords):
            mine = getattr(body, "__module__", "") == "jaxkd.rollout"
            return scan(body, *args, **keywords | ({"unroll": times} if mine else {}))

        with mock.patch.object(jax.lax, "scan", longer):
            yield

    return change


def levers_of() -> dict[str, tuple[Callable[[], Any], dict]]:
    """{name: (what is changed while tracing, keywords of the networks)}."""
    import jax
    import jax.numpy as jnp

    from jaxkd import returns
    from jaxkd.distributions import Categorical

    cnn = import_module("jaxkd.networks.cnn")  # the module; the package's name for it is the factory

    def inverted(self, key):
        """One uniform number a row instead of one Gumbel number a logit."""
        share = jnp.cumsum(jax.nn.softmax(self.logits), axis=-1)[..., :-1]
        return jnp.sum(jax.random.uniform(key, share.shape[:-1] + (1,)) >= share, axis=-1).astype(jnp.int32)

    def convolved(x, kernel):
        """What `cnn.banded` computes, by XLA's own convolution."""
        order = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=order)

    def associated(x, decay):
        join = lambda later, row: (row[0] * later[0], row[1] + row[0] * later[1])
        return jax.lax.associative_scan(join, (decay, x), reverse=True)[1]

    return {
        "as it is": (contextlib.nullcontext, {}),
        "scan unrolled 2": (unrolled(2), {}),
        "scan unrolled 4": (unrolled(4), {}),
        "scan unrolled 8": (unrolled(8), {}),
        "one uniform number an action": (
            lambda: mock.patch.object(Categorical, "sample", inverted),
            {},
        ),
        "no random numbers in choosing": (
            lambda: mock.patch.object(Categorical, "sample", lambda self, key: self.mode()),
            {},
        ),
        "bfloat16": (contextlib.nullcontext, {"dtype": jnp.bfloat16}),
        "lax.conv": (lambda: mock.patch.object(cnn, "banded", convolved), {}),
        "advantages by an associative scan": (
            lambda: mock.patch.object(returns, "discounted_sum", associated),
            {},
        ),
        "rbg keys": (contextlib.nullcontext, {}),
    }


def levers(kind: str, game: str) -> Callable[[Size], Entries]:
    """Each lever alone against the engine as it is, compiled side by side."""

    def source(name: str, size: Size):
        change, keywords = levers_of()[name]
        import jax

        with change():
            algorithm, inputs = work(kind, game, size.sample, **keywords)
            keys = None
            if name == "rbg keys":
                keys = jax.random.split(jax.random.key(0, impl="rbg"), 1)
            return build(algorithm, size.sample, 1, inputs, keys=keys)

    def row(size: Size) -> Entries:
        only = {"lax.conv": "Breakout", "advantages by an associative scan": "ppo"}
        names = [name for name in levers_of() if only.get(name, "") in f"{kind} {game}"]
        sources = {name: lambda name=name: source(name, size) for name in names}
        programs = side_by_side(sources, time.perf_counter() + ROW_SECONDS)
        found: dict = {}
        for name in names:
            found[name] = measured(programs[name], size)
            usual = found["as it is"].get("milliseconds_an_update", math.nan)
            gain = usual / found[name].get("milliseconds_an_update", math.nan)
            yield {"lever": name, "what": f"{kind}, {game}", "gain": gain} | found[name]

    row.__doc__ = f"levers, each alone, {kind} of {game}"
    return row


def flags(size: Size) -> Entries:
    """The same programs under flags of XLA, each in a process of its own."""
    plain: dict = {}
    for name, flag in FLAGS.items():
        given = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
        for entry in in_a_child("sample", size, XLA_FLAGS=given):
            before = plain.setdefault(entry.get("what"), entry)
            gain = before.get("milliseconds_an_update", math.nan) / entry.get("milliseconds_an_update", math.nan)
            yield {"flags": name, "xla": flag, "gain": gain} | entry


def rejax(size: Size) -> Entries:
    """PPO of CartPole beside Rejax in a process of its own, in turns.

    PEER_SITE is a folder with rejax and gymnax below 1.
    """
    site = os.environ.get("PEER_SITE")
    if site is None:
        yield {"skipped": "PEER_SITE names no folder with rejax 0.1.3 and gymnax 0.0.9"}
        return
    for envs in (size.few, size.envs[1]):
        yield {"num_envs": envs} | in_turns(envs, site, updates=64)


def in_turns(envs: int, site: str, updates: int) -> dict[str, Any]:
    """Steps per second of both, and the median of the rounds' ratios."""
    paths = f"{site}:{os.environ.get('PYTHONPATH', '')}"
    given = os.environ | SHARED_MEMORY | {"PEER_ENVS": str(envs), "PYTHONPATH": paths}
    script = Path(__file__).parents[1] / "peers" / "with_rejax.py"
    command = [sys.executable, str(script), "ppo", str(updates)]
    program = build(work("ppo", "CartPole-v1", envs)[0], envs, 1, updates=updates)()
    pipes: Any = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with subprocess.Popen(command, env=given, text=True, **pipes) as child:
        answers: Any = child.stdout
        ready = json.loads(answers.readline() or "{}")
        if not ready:
            return {"skipped": "rejax did not start"}
        ours, theirs = [], []
        for _ in range(ROUNDS):
            seconds, program = timed(program, 0)
            ours.append(program.steps / seconds)
            print("go", file=child.stdin, flush=True)
            told = json.loads(answers.readline())
            theirs.append(told["steps"] / told["seconds"])
        child.terminate()
    return {
        "ours": statistics.median(ours),
        "theirs": statistics.median(theirs),
        "ratio": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
        "our_compile_seconds": program.compile_seconds,
        "their_compile_seconds": ready["compile_seconds"],
    }


def sample(size: Size) -> Entries:
    """The three programs by which flags are judged."""
    sources = {}
    for kind, game in SAMPLE:
        algorithm, inputs = work(kind, game, size.sample)
        sources[f"{kind}, {game}"] = lambda algorithm=algorithm, inputs=inputs: build(algorithm, size.sample, 1, inputs)
    programs = side_by_side(sources, time.perf_counter() + ROW_SECONDS)
    for what, program in programs.items():
        yield {"what": what} | measured(program, size)
