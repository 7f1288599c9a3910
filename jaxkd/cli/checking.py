"""`jaxkd check-env`: what is wrong with an environment?"""

import os
import sys
from importlib import import_module
from typing import Any

import jax

from jaxkd.base import UsageError
from jaxkd.cli.settings import CheckEnv
from jaxkd.envs.checking import check_env as faults_of


def check_env(settings: CheckEnv) -> int:
    """Prints every fault with what to do; 1 where one is grave."""
    jax.config.update("jax_platforms", "cpu")
    environment = _made(settings.env) if ":" in settings.env else settings.env
    faults = faults_of(environment, num_steps=settings.steps, seed=settings.seed)
    for fault in faults:
        print(f"{'fault' if fault.grave else 'note'}: {fault.cause}. {fault.fix}")
    grave = sum(fault.grave for fault in faults)
    print(f"{settings.env}: {grave or 'no'} fault{'' if grave == 1 else 's'}")
    return int(grave > 0)


def _made(path: str) -> Any:
    """What the function, or the class, of "module:factory" makes; modules here are found too."""
    module, _, name = path.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        factory = getattr(import_module(module), name)
    except ImportError as error:
        raise UsageError(
            f"{module!r} cannot be imported ({error}). Give MODULE:FACTORY, with the module "
            f"installed or here."
        ) from error
    except AttributeError as error:
        raise UsageError(f"module {module!r} has no {name!r}. Give MODULE:FACTORY.") from error
    return factory() if callable(factory) else factory
