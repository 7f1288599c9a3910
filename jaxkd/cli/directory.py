"""A run's directory: made once, never overwritten.

Lines are flushed as they come, whole files appear at once.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.base import UsageError


class Directory:
    """The files of one run."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, name: str, **values: Any) -> None:
        """One JSON line at the end of `name`, on disk when this returns."""
        with (self.path / name).open("a") as file:
            file.write(json.dumps(plain(values), allow_nan=False) + "\n")

    def write(self, name: str, values: dict[str, Any]) -> None:
        """A JSON file that is there as a whole or not at all."""
        part = self.path / f".{name}.part"
        with part.open("w") as file:
            file.write(json.dumps(plain(values), indent=1, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path / name)

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file by its path below the directory."""
        files = sorted(path for path in self.path.rglob("*") if path.is_file())
        return {
            path.relative_to(self.path).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }


def make(env: str, out: Path | None) -> Directory:
    """A new directory: `out`, or runs/<env>-<UTC time>, with -2 and so on where that is taken.

    Raises:
        UsageError: if `out` holds something, or no directory can be made there.
    """
    if out is None:
        return _numbered(f"{env}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    made = _new(out)
    if made is None and out.is_dir() and not any(out.iterdir()):
        made = Directory(out)
    if made is None:
        raise UsageError(
            f"--out {out} exists and is not an empty directory, and a run overwrites nothing. "
            "Name another."
        )
    return made


def _numbered(stem: str) -> Directory:
    """runs/<stem>, or runs/<stem>-2 and so on: the first that is not there."""
    for number in count(1):
        name = stem if number == 1 else f"{stem}-{number}"
        made = _new(Path("runs") / name)
        if made is not None:
            return made
    raise AssertionError  # count never ends


def _new(path: Path) -> Directory | None:
    """The directory, newly made; None where something is there already."""
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path):
            return None
        path.mkdir()
    except OSError as error:
        raise UsageError(
            f"cannot make the directory {path}: {error.strerror}. Name another with --out."
        ) from error
    return Directory(path)


def plain(value: Any) -> Any:
    """JSON's own types: arrays as lists, what is not finite as null, anything else by its name."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return _name(value) if callable(value) else str(value)


def _name(value: Callable) -> str:
    return getattr(value, "__name__", type(value).__name__)
