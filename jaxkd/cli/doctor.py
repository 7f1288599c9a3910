"""`jaxkd doctor`: does the installation work, and what holds it back?"""

import importlib.util
import platform
import re
import tempfile
import time
from importlib.metadata import PackageNotFoundError, requires, version

import jax
import jax.numpy as jnp

from jaxkd import envs, losses, networks
from jaxkd.base import UsageError
from jaxkd.cache import compile_cache
from jaxkd.cli import device as devices
from jaxkd.cli.settings import Doctor
from jaxkd.cli.summary import versions
from jaxkd.recipes import distill
from jaxkd.run import run, seeds

_EXTRAS = {  # a module that each brings
    "cuda12": "jax_cuda12_plugin",
    "cuda13": "jax_cuda13_plugin",
    "tpu": "libtpu",
    "tb": "tensorboardX",
    "wandb": "wandb",
    "viz": "seaborn",
    "notebooks": "jupyterlab",
}
_CAPPED = ("jax", "gymnasium")  # by gymnax
_CAP = re.compile(r"^(?P<name>[\w-]+).*?(?P<cap><=?[\d.]+)")


def doctor(settings: Doctor) -> int:
    """Prints versions and device, distils for two updates, names what is missing or held back."""
    device = devices.choose(settings.device)
    print(f"device: {devices.describe(device)}", flush=True)
    print(
        f"python {platform.python_version()}, "
        + ", ".join(f"{name} {number}" for name, number in versions().items()),
        flush=True,
    )
    print(_cache(), flush=True)
    started = time.monotonic()
    sound = _self_test()
    took = time.monotonic() - started
    verdict = "passed" if sound else "FAILED"
    print(f"self-test: {verdict} (two updates of a distillation, {took:.1f} s)")
    for line in [*_caps(), *_missing()]:
        print(line)
    return 0 if sound else 1


def _cache() -> str:
    """Whether compiled programs are kept for the next start."""
    try:
        folder = compile_cache()
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (UsageError, OSError) as error:
        return f"compile cache: none, {error}"
    programs = list(folder.glob("*-cache"))
    size = sum(path.stat().st_size for path in programs)
    return f"compile cache: {folder}, {len(programs)} programs, {size / 2**20:.0f} MiB"


def _caps() -> list[str]:
    """The versions of jax and gymnasium that gymnax does not let us have."""
    try:
        wanted = requires("gymnax") or []
        found = f"gymnax {version('gymnax')}"
    except PackageNotFoundError:
        return []
    caps = {}
    for requirement in wanted:
        capped = _CAP.match(requirement)
        if capped and capped["name"] in _CAPPED and "extra ==" not in requirement:
            caps.setdefault(capped["name"], capped["cap"])
    return [f"{found} keeps {name}{cap} (installed: {_have(name)})" for name, cap in caps.items()]


def _have(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _missing() -> list[str]:
    return [
        f'extra {extra}: not installed; pip install "jaxkd-rl[{extra}]"'
        for extra, module in _EXTRAS.items()
        if importlib.util.find_spec(module) is None
    ]


def _self_test() -> bool:
    env = envs.make("CartPole-v1", 4)
    teacher, student = networks.mlp(env, (16,)), networks.mlp(env, (4,))
    algorithm = distill(env, student, teacher, losses={"kl": losses.forward_kl()}, unroll_length=8)
    key = seeds(0, 1)[0]
    state, metrics = jax.block_until_ready(run(algorithm, key, 2, teacher.init(key)))
    return bool(jnp.isfinite(metrics["loss/kl"]).all()) and int(state.update) == 2
