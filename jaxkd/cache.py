"""Compiled programs kept from one process to the next."""

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path

import jax
from platformdirs import user_cache_path

from jaxkd.base import UsageError


def compile_cache(folder: str | Path | None = None) -> Path:
    """Keeps compiled programs on disk from now on.

    The next process that compiles the same program loads it instead. Whoever can write to the
    folder can run code in your process (jax trusts it), so it is made for you alone. Programs of
    another version of jaxlib or another kind of CPU are in another folder.

    Args:
        folder: where; default the user's cache folder for jaxkd.

    Returns:
        the folder of this version and machine.

    Raises:
        UsageError: it cannot be made, or others may write to it.

    >>> import tempfile
    >>> compile_cache(tempfile.mkdtemp()).is_dir()
    True
    """
    home = (
        Path(folder).expanduser() if folder is not None else user_cache_path("jaxkd") / "compiled"
    )
    path = home / f"jaxlib-{version('jaxlib')}-{_machine()}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        shared = path.stat().st_mode & 0o022
    except OSError as error:
        raise UsageError(
            f"the compile cache cannot be made: {error}. Give compile_cache another folder."
        ) from error
    if shared:
        raise UsageError(
            f"others may write to {path}, and jax runs what it finds there. chmod 700 it, or give "
            "compile_cache another folder."
        )
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return path


def _machine() -> str:
    """The kind of CPU, as a word: programs for CPUs use every instruction they find."""
    telling = ("model name", "flags", "Features", "CPU part")
    try:
        first_core = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        kind = "".join(line for line in first_core if line.startswith(telling))
    except OSError:
        kind = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"
