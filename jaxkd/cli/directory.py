"""A run's directory: made once, never overwritten.

Lines are flushed as they come, whole files appear at once.
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.base import UsageError
from jaxkd.cli.card import CARD, LOCK, free, sealed

CHECKPOINTS, REPORT = "checkpoints", "report"  # what their names begin with


class Directory:
    """The files of one run."""

    def __init__(self, path: Path):
        self.path = path
        self._lock: Any = None

    def lock(self) -> "Directory":
        """Keeps other processes out, until the end of a `with` block or of this process.

        Raises:
            UsageError: another process is at work here.
        """
        file = (self.path / LOCK).open("a+")
        if not free(file, exclusive=True):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise UsageError(
                f"process {holder} is at work in {self.path}. Wait for it, stop it, or name "
                f"another directory."
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._lock = file  # closed, it is open to others
        return self

    def __enter__(self) -> "Directory":
        return self

    def __exit__(self, *error: Any) -> None:
        """Lets others in."""
        if self._lock is not None:
            self._lock.close()

    def append(self, name: str, **values: Any) -> None:
        """One JSON line at the end of `name`."""
        with writing(self.path / name, "ab") as file:
            file.write(json_line(values).encode())

    def write(self, name: str, values: dict[str, Any]) -> None:
        """A JSON file that is there as a whole or not at all."""
        part = self.path / f".{name}.part"
        with writing(part, "wb") as file:
            file.write((json.dumps(plain(values), indent=1, allow_nan=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path / name)

    def write_card(self, card: dict[str, Any]) -> None:
        """run.json, with its digest."""
        self.write(CARD, sealed(plain(card)))

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file by its path below the directory.

        Checkpoints bring their own, and a report can be written again.
        """
        below = {path.relative_to(self.path): path for path in self.path.rglob("*")}
        return {
            name.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for name, path in sorted(below.items())
            if path.is_file()
            and name.parts[0] not in (CHECKPOINTS, LOCK, CARD)
            and not name.parts[0].startswith(REPORT)
        }


@contextlib.contextmanager
def writing(path: Path, mode: str) -> Iterator[Any]:
    """An open file; what goes wrong names it, which a full disk does not."""
    try:
        with path.open(mode) as file:
            yield file
    except OSError as error:
        what = f"{path} not written: {os.strerror(error.errno or 0)}"
        raise OSError(error.errno, what) from error


def make(env: str, out: Path | None) -> Directory:
    """A new directory, locked: `out`, or runs/<env>-<UTC time>, with -2 where that is taken.

    Raises:
        UsageError: if `out` holds something, no directory can be made there, or another process
            has just made it.
    """
    if out is None:
        return _numbered(f"{env}-{datetime.now(UTC):%Y%m%d-%H%M%S}").lock()
    made = _new(out)
    if made is None and _empty(out):
        made = Directory(out).lock()
        return made if _empty(out) else _refuse(out)  # the one before us may have come and gone
    return made.lock() if made else _refuse(out)


def _refuse(out: Path) -> Directory:
    raise UsageError(
        f"--out {out} exists and is not an empty directory, and a run overwrites nothing. "
        "Name another."
    )


def _empty(path: Path) -> bool:
    return path.is_dir() and all(found.name == LOCK for found in path.iterdir())


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
        with contextlib.suppress(FileExistsError):  # somebody was faster: the lock decides
            path.mkdir()
            return Directory(path)
        return None
    except OSError as error:
        raise UsageError(
            f"cannot make the directory {path}: {error.strerror}. Name another with --out."
        ) from error


def json_line(values: dict[str, Any]) -> str:
    """One JSON value in one line."""
    return json.dumps(plain(values), allow_nan=False) + "\n"


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
