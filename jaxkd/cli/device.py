"""Where a command computes: chosen before jax starts a backend, named on the first line."""

import contextlib
import os
from typing import Any

import jax

from jaxkd.base import DeviceError

Device = Any  # jax.Device is no type to a type checker
_MOST_ON_CPU = 256  # virtual devices

_EXTRAS = {"gpu": "cuda12", "tpu": "tpu"}


def choose(wanted: str, number: int = 1) -> Device:
    """The device to compute on, or the first of several.

    Args:
        wanted: auto, cpu, gpu or tpu.
        number: how many; a CPU is made into so many virtual ones.

    Raises:
        DeviceError: where there is none, instead of a silent fall-back to the CPU; or not so many.
    """
    if 1 < number <= _MOST_ON_CPU:
        with contextlib.suppress(RuntimeError):  # a backend is there already: it is counted below
            jax.config.update("jax_num_cpu_devices", number)
    if wanted == "cpu":
        jax.config.update("jax_platforms", "cpu")
    elif wanted in _EXTRAS:
        # Asked for by name, it outweighs JAX_PLATFORMS in the environment.
        jax.config.update("jax_platforms", "")
    try:
        device = (jax.devices() if wanted == "auto" else jax.devices(wanted))[0]
    except (RuntimeError, AssertionError) as error:  # jax asserts that it finds a platform named
        if wanted not in _EXTRAS:
            asked = os.environ.get("JAX_PLATFORMS", "")
            cause = str(error) or f"JAX_PLATFORMS={asked} is not installed here. Leave it out"
            raise DeviceError(f"jax {jax.__version__} finds no device: {cause}.") from error
        raise DeviceError(
            f"jax {jax.__version__} finds no {wanted}, only {jax.devices()[0].platform}. "
            f'Install its support: pip install "jaxkd-rl[{_EXTRAS[wanted]}]"'
        ) from error
    there = len(jax.devices(device.platform))
    if number > there:
        raise DeviceError(
            f"--devices {number}: jax finds {there} of kind {device.platform}. "
            f"Take --devices {there}."
        )
    return device


def describe(device: Device) -> str:
    """The device in words: "cpu, 2 cores (TFRT_CPU_0), jax 0.10.2"."""
    what = f"{num_cores()} cores" if device.platform == "cpu" else device.device_kind
    return f"{device.platform}, {what} ({device}), jax {jax.__version__}"


def num_cores() -> int:
    """The processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
