"""run.json: what a run was asked for, where it stands, what it became.

Imports no jax: `jaxkd runs` reads many of them at once.
"""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows, where nobody is kept out
    fcntl = None

CARD, SUMMARY, LOCK, FORMAT = "run.json", "summary.json", ".lock", 2
_DIGEST = "sha256"  # of the rest of the card


class Damaged(ValueError):
    """No run, or one whose card cannot be believed."""


def sealed(card: dict[str, Any]) -> dict[str, Any]:
    """The card with its digest."""
    return card | {_DIGEST: _digest(card)}


def read(run: Path) -> dict[str, Any]:
    """The card of a run's directory.

    Raises:
        Damaged: there is none, it changed after it was written, or another version wrote it.
    """
    path = run / CARD
    if not path.is_file():
        there = "is no directory of a run: it has no run.json" if run.is_dir() else "is not there"
        raise Damaged(f"{run} {there}. `jaxkd runs` lists the runs here.")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged ({type(error).__name__}). Begin the run anew.") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else None
        raise Damaged(
            f"{path} has format {found!r}, and this version reads {FORMAT}. Take the version of "
            f"jaxkd that wrote it."
        )
    if card.get(_DIGEST) != _digest(card):
        raise Damaged(f"{path} changed after it was written. Put the original back.")
    return card


def json_of(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines that can be read; none where it is missing."""
    found = []
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # one that was being written when all ended
                found.append(json.loads(line))
    return found


def summary(run: Path, card: dict[str, Any]) -> dict[str, Any]:
    """summary.json of a run with this card; nothing where it has none.

    Raises:
        Damaged: it is not the one that the run wrote.
    """
    path, then = run / SUMMARY, card.get("digests", {}).get(SUMMARY)
    content = path.read_bytes() if path.is_file() else b""
    if then is not None and hashlib.sha256(content).hexdigest() != then:
        raise Damaged(f"{path} changed after it was written. Put the original back.")
    return json_of(path)


def busy(run: Path) -> bool:
    """Whether a process is at work there."""
    with contextlib.suppress(OSError), (run / LOCK).open() as file:
        return not free(file, exclusive=False)
    return False


def free(file: Any, *, exclusive: bool) -> bool:
    """Takes an open file's lock, which is gone with the process; False where another has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _digest(card: dict[str, Any]) -> str:
    rest = {name: value for name, value in card.items() if name != _DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
