"""What ends a command early, and the exit code and the line it ends with."""

import jax

from jaxkd.base import ArtifactError, DeviceError, UsageError
from jaxkd.cli.card import Damaged

USAGE, DEVICE, ARTIFACT, DIVERGED = 2, 3, 4, 5


class Diverged(RuntimeError):
    """Every seed has become non-finite."""


class Interrupted(RuntimeError):
    """The user or the system asked to stop, and what there was is saved."""


def explain(error: Exception) -> tuple[int | None, str]:
    """(exit code, cause) of an error that is the user's to mend; (None, "") of a bug."""
    text = " ".join(str(error).split())
    for kind, code in (
        (UsageError, USAGE),
        (DeviceError, DEVICE),
        (ArtifactError, ARTIFACT),
        (Damaged, ARTIFACT),
        (Diverged, DIVERGED),
    ):
        if isinstance(error, kind):
            return code, text
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in text:
        return DEVICE, "out of memory on the device. Try fewer --seeds."
    if isinstance(error, OSError):
        return ARTIFACT, f"{text}. What was written before is kept."
    return None, ""
