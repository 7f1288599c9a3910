"""`jaxkd envs`, `jaxkd methods` and `jaxkd doctor`."""

import importlib.util
import platform
import time

import jax
import jax.numpy as jnp
import rich.table

from jaxkd import check, losses, networks, presets
from jaxkd import envs as environments
from jaxkd.cli import device as devices
from jaxkd.cli.settings import Doctor
from jaxkd.cli.summary import versions
from jaxkd.recipes import distill
from jaxkd.report import console
from jaxkd.run import run, seeds

_EXTRAS = {  # a module that each brings
    "cuda12": "jax_cuda12_plugin",
    "cuda13": "jax_cuda13_plugin",
    "tpu": "libtpu",
    "viz": "seaborn",
    "notebooks": "jupyterlab",
}


def envs() -> int:
    """Prints the table of environments."""
    jax.config.update("jax_platforms", "cpu")
    table = rich.table.Table("id", "observation", "actions", "max steps", "preset")
    for name in environments.ids():
        env = environments.make(name, 1)
        obs, action = check.spaces(env.obs_spec, env.action_space)
        seen = ", ".join(
            f"{path + ' ' if path else ''}{'x'.join(map(str, shape)) or 'scalar'} {dtype}"
            for path, shape, dtype in obs
        )
        acts = f"{action[1]} actions" if action[0] == "discrete" else f"{action[1]} in [-1, 1]"
        limit = str(env.max_steps or "none (presets cut at 1000)")
        table.add_row(name, seen, acts, limit, _preset_in_words(name))
    console().print(table)
    return 0


def _preset_in_words(name: str) -> str:
    if name not in presets.PRESETS:
        return "-"
    gate = presets.PRESETS[name].gate
    return "yes" if gate is None else f"yes, return {gate:g}"


def methods() -> int:
    """Prints the table of methods, as their records say."""
    table = rich.table.Table(show_lines=True)
    table.add_column("method", no_wrap=True)
    for heading in ("what it is", "paper", "needs"):
        table.add_column(heading)
    for name, method in presets.METHODS.items():
        table.add_row(name, method.summary, method.paper, method.needs)
    console().print(table)
    return 0


def doctor(settings: Doctor) -> int:
    """Prints versions and device, distils for two updates, names extras that are missing."""
    device = devices.choose(settings.device)
    print(f"device: {devices.describe(device)}", flush=True)
    print(
        f"python {platform.python_version()}, "
        + ", ".join(f"{name} {number}" for name, number in versions().items()),
        flush=True,
    )
    started = time.monotonic()
    sound = _self_test()
    took = time.monotonic() - started
    verdict = "passed" if sound else "FAILED"
    print(f"self-test: {verdict} (two updates of a distillation, {took:.1f} s)")
    for extra, module in _EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            print(f'extra {extra}: not installed; pip install "jaxkd-rl[{extra}]"')
    return 0 if sound else 1


def _self_test() -> bool:
    env = environments.make("CartPole-v1", 4)
    teacher, student = networks.mlp(env, (16,)), networks.mlp(env, (4,))
    algorithm = distill(env, student, teacher, losses={"kl": losses.forward_kl()}, unroll_length=8)
    key = seeds(0, 1)[0]
    state, metrics = run(algorithm, key, 2, teacher.init(key))
    return bool(jnp.isfinite(metrics["loss/kl"]).all()) and int(state.update) == 2
