"""Small students from big teachers: distillation and reinforcement learning in one compiled JAX
function.

Public names are imported when they are first used, so that `jaxkd --help` answers before jax has
loaded.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxkd import (
        behavior,
        distributions,
        envs,
        losses,
        memory,
        methods,
        networks,
        presets,
        returns,
        rewards,
        sequences,
        sharding,
    )
    from jaxkd.base import (
        Algorithm,
        ArtifactError,
        Behavior,
        DeviceError,
        Env,
        LossTerm,
        Memory,
        Outputs,
        Policy,
        Returns,
        RewardTransform,
        UsageError,
    )
    from jaxkd.cache import compile_cache
    from jaxkd.checkpoint import restore, save
    from jaxkd.describe import describe
    from jaxkd.envs.checking import check_env
    from jaxkd.evaluate import actor_size, evaluate, interval, iqm
    from jaxkd.export import check_export, export
    from jaxkd.policies import load_policy, save_policy
    from jaxkd.recipes import co_distill, distill, ppo, pqn
    from jaxkd.run import lanes, memory_needed, run, seeds, stream
    from jaxkd.tracking import tracker

__version__ = "0.2.0"

__all__ = [
    "Algorithm",
    "ArtifactError",
    "Behavior",
    "DeviceError",
    "Env",
    "LossTerm",
    "Memory",
    "Outputs",
    "Policy",
    "Returns",
    "RewardTransform",
    "UsageError",
    "actor_size",
    "behavior",
    "check_env",
    "check_export",
    "co_distill",
    "compile_cache",
    "describe",
    "distill",
    "distributions",
    "envs",
    "evaluate",
    "export",
    "interval",
    "iqm",
    "lanes",
    "load_policy",
    "losses",
    "memory",
    "memory_needed",
    "methods",
    "networks",
    "ppo",
    "pqn",
    "presets",
    "restore",
    "returns",
    "rewards",
    "run",
    "save",
    "save_policy",
    "seeds",
    "sequences",
    "sharding",
    "stream",
    "tracker",
]

_HOMES = {  # of the public names that are no modules; the others in __all__ are modules
    "check_env": "envs.checking",
    "compile_cache": "cache",
    **dict.fromkeys(("restore", "save"), "checkpoint"),
    **dict.fromkeys(("load_policy", "save_policy"), "policies"),
    **dict.fromkeys(("actor_size", "evaluate", "interval", "iqm"), "evaluate"),
    "describe": "describe",
    **dict.fromkeys(("check_export", "export"), "export"),
    **dict.fromkeys(("co_distill", "distill", "ppo", "pqn"), "recipes"),
    **dict.fromkeys(("lanes", "memory_needed", "run", "seeds", "stream"), "run"),
    "tracker": "tracking",
    **dict.fromkeys((name for name in __all__ if name[0].isupper()), "base"),
}


if not TYPE_CHECKING:  # a type checker would take it for every misspelt name

    def __getattr__(name: str) -> Any:
        """The public name, imported (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module 'jaxkd' has no attribute {name!r}")
        home = import_module(f"jaxkd.{_HOMES.get(name, name)}")
        value = getattr(home, name) if name in _HOMES else home
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `jaxkd.run` and `jaxkd.evaluate` the functions: importing a module of that name would
    put the module there.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
