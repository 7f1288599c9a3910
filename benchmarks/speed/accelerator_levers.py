"""What could make it faster, lever by lever and flag by flag, and Rejax on the same card."""

import contextlib
import json
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
    COMPILE_SECONDS,
    ROUNDS,
    SAMPLE,
    Entries,
    Size,
    build,
    measured,
    milliseconds,
    side_by_side,
    timed,
    work,
)

WITH_REJAX = Path(__file__).parent / "peers" / "with_rejax.py"
FLAGS = {  # of XLA, each in a process of its own
    "as it is": "",
    "loops as command buffers": "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL",
    "no command buffers": "--xla_gpu_enable_command_buffer=",
    "small command buffers too": "--xla_gpu_graph_min_graph_size=1",
    "loops unrolled twice": "--xla_gpu_enable_while_loop_unrolling="
    "WHILE_LOOP_UNROLLING_DOUBLE_BUFFER",
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


def inverted(self, key):
    """One uniform number a row instead of one Gumbel number a logit."""
    import jax
    import jax.numpy as jnp

    share = jnp.cumsum(jax.nn.softmax(self.logits), axis=-1)[..., :-1]
    drawn = jax.random.uniform(key, share.shape[:-1] + (1,))
    return jnp.sum(drawn >= share, axis=-1).astype(jnp.int32)


def associated(x, decay):
    """`returns.discounted_sum` in parallel."""
    import jax

    join = lambda later, row: (row[0] * later[0], row[1] + row[0] * later[1])
    return jax.lax.associative_scan(join, (decay, x), reverse=True)[1]


def lax_conv(x, kernel):
    """What `banded` stands for."""
    import jax

    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=axes)


def levers_of() -> dict[str, tuple[Callable[[], Any], dict]]:
    """{name: (what is changed while tracing, keywords of the networks)}."""
    import jax.numpy as jnp

    from jaxkd import returns
    from jaxkd.distributions import Categorical

    # The module; the package's name for it is the factory.
    cnn = import_module("jaxkd.networks.cnn")
    plain, patch = contextlib.nullcontext, mock.patch.object
    return {
        "as it is": (plain, {}),
        "scan unrolled 2": (unrolled(2), {}),
        "scan unrolled 4": (unrolled(4), {}),
        "scan unrolled 8": (unrolled(8), {}),
        "one uniform number an action": (lambda: patch(Categorical, "sample", inverted), {}),
        "no random numbers in choosing": (
            lambda: patch(Categorical, "sample", lambda self, key: self.mode()),
            {},
        ),
        "bfloat16": (plain, {"dtype": jnp.bfloat16}),
        "lax.conv": (lambda: patch(cnn, "banded", lax_conv), {}),
        "advantages by an associative scan": (
            lambda: patch(returns, "discounted_sum", associated),
            {},
        ),
        "rbg keys": (plain, {}),
    }


ONLY = {"lax.conv": "Breakout", "advantages by an associative scan": "ppo"}


def levers(kind: str, game: str) -> Callable[[Size], Entries]:
    """Each lever alone against the engine as it is, compiled side by side."""

    def source(name, size):
        import jax

        change, keywords = levers_of()[name]
        keys = jax.random.split(jax.random.key(0, impl="rbg"), 1) if name == "rbg keys" else None
        with change():
            algorithm, inputs = work(kind, game, size.sample, **keywords)
            return build(algorithm, size.sample, 1, inputs, keys=keys)

    def row(size: Size) -> Entries:
        what = f"{kind}, {game}"
        names = [name for name in levers_of() if ONLY.get(name, "") in what]
        sources = {name: lambda name=name: source(name, size) for name in names}
        programs = side_by_side(sources, time.perf_counter() + COMPILE_SECONDS)
        plain = None
        for name in names:
            found = measured(programs[name], size)
            plain = plain or found
            gain = milliseconds(plain) / milliseconds(found)
            yield {"lever": name, "what": what, "gain": gain} | found

    row.__doc__ = f"{kind} of {game}: {levers.__doc__}"
    return row


def flags(size: Size) -> Entries:
    """The same programs under flags of XLA, each in a process of its own."""
    plain: dict = {}
    for name, flag in FLAGS.items():
        given = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
        for entry in in_a_child("sample", size, XLA_FLAGS=given):
            before = plain.setdefault(entry.get("what"), entry)
            gain = milliseconds(before) / milliseconds(entry)
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
        yield {"num_envs": envs} | beside_rejax(site, envs)


def beside_rejax(site: str, envs: int, updates: int = 64) -> dict[str, Any]:
    """Steps per second of both, round by round."""
    path = f"{site}:{os.environ.get('PYTHONPATH', '')}"
    given = os.environ | SHARED_MEMORY | {"PEER_ENVS": str(envs), "PYTHONPATH": path}
    command = [sys.executable, str(WITH_REJAX), "ppo", str(updates)]
    program = build(work("ppo", "CartPole-v1", envs)[0], envs, 1, updates=updates)()
    pipes: dict = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with subprocess.Popen(command, env=given, text=True, **pipes) as child:
        assert child.stdin is not None and child.stdout is not None
        ready = json.loads(child.stdout.readline() or '{"compile_seconds": null}')
        ours, theirs = [], []
        for _ in range(ROUNDS if ready["compile_seconds"] else 0):
            seconds, program = timed(program, 0)
            ours.append(program.steps / seconds)
            print("go", file=child.stdin, flush=True)
            told = json.loads(child.stdout.readline())
            theirs.append(told["steps"] / told["seconds"])
        child.terminate()
    if not ours:
        return {"skipped": "rejax did not start"}
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
        sources[f"{kind}, {game}"] = lambda algorithm=algorithm, inputs=inputs: build(
            algorithm, size.sample, 1, inputs
        )
    programs = side_by_side(sources, time.perf_counter() + COMPILE_SECONDS)
    for what, program in programs.items():
        yield {"what": what} | measured(program, size)
