"""What stands beside a checkpoint, and what is compared with it before anything is believed.

The card is JSON in the checkpoint: format, what the caller said of the run, [path, dtype, shape,
SHA-256] of every leaf, and a digest over all of that. SHA256SUMS is of the files, for `sha256sum
-c`, because what reads the arrays is loud about damaged files.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.base import ArtifactError, UsageError

FORMAT = 1
SUMS = "SHA256SUMS"


def card_of(paths: list[str], leaves: list, about: dict[str, Any]) -> dict[str, Any]:
    """The card of arrays with these paths."""
    entries = [entry(path, leaf) for path, leaf in zip(paths, leaves, strict=True)]
    card = {"format": FORMAT, "about": json.loads(json.dumps(about)), "leaves": entries}
    return card | {"digest": digest(card)}


def entry(path: str, leaf: jax.Array) -> list:
    """[path, dtype, shape, SHA-256 of the bytes]; the whole array, wherever its parts are."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    whole: Any = jax.random.key_data(leaf) if is_key else leaf
    if not whole.is_fully_addressable:
        from jax.experimental import multihost_utils

        whole = multihost_utils.process_allgather(whole, tiled=True)
    data = np.ascontiguousarray(whole)
    return [path, str(leaf.dtype), list(leaf.shape), hashlib.sha256(data.tobytes()).hexdigest()]


def sums(place: Path) -> str:
    """SHA-256 and name of every file below, as `sha256sum` writes it."""
    files = sorted(path for path in place.rglob("*") if path.is_file() and path.name != SUMS)
    sums = [(hashlib.sha256(path.read_bytes()).hexdigest(), path) for path in files]
    return "".join(f"{digest}  {path.relative_to(place).as_posix()}\n" for digest, path in sums)


def seal(place: Path) -> None:
    """Notes what its files are, once they are all there.

    The card says it of the arrays; but what reads them is loud about files that are damaged.
    """
    part = place / f".{SUMS}.part"
    part.write_text(sums(place))
    part.replace(place / SUMS)


def digest(card: dict) -> str:
    """SHA-256 of the card without its digest."""
    rest = {name: value for name, value in card.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


# --- what is refused ----------------------------------------------------------------------------


def check_files(place: Path) -> None:
    """Nothing is known of files that were never sealed, because the process was killed before."""
    if not (place / SUMS).exists():
        return
    try:
        then, now = (place / SUMS).read_text().splitlines(), sums(place).splitlines()
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{place} cannot be read: {line(error)}") from error
    apart = {line.split("  ")[-1] for line in set(then) ^ set(now)}
    if apart:
        raise ArtifactError(
            f"{place} is damaged: {', '.join(sorted(apart)[:3])} changed after it was written."
        )


def check_card(place: Path, metadata: Any) -> dict[str, Any]:
    """The card in Orbax's metadata."""
    card = metadata.custom_metadata
    if not isinstance(card, dict) or not {"format", "about", "leaves", "digest"} <= set(card):
        raise ArtifactError(f"{place} was not written by jaxkd.save, or its card is damaged.")
    if card["format"] != FORMAT:
        raise ArtifactError(
            f"{place} has format {card['format']!r}; this version reads {FORMAT}. "
            f"Load it with the version of jaxkd that wrote it."
        )
    if card["digest"] != digest(card):
        raise ArtifactError(f"{place} is damaged: its card is not what was saved.")
    return card


def check_about(place: Path, then: dict, now: dict) -> None:
    now = json.loads(json.dumps(now))
    for name, value in now.items():
        if then.get(name) != value:
            raise UsageError(
                f"{place} is of another {name}: saved {then.get(name)!r}, now {value!r}. "
                f"Restore it with what it was saved with, or begin anew in another directory."
            )


def check_leaves(place: Path, entries: list, paths: list[str], leaves: list) -> None:
    then = {path: f"{dtype}{shape}" for path, dtype, shape, _ in entries}
    now = {
        path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in zip(paths, leaves, strict=True)
    }
    if list(then.items()) == list(now.items()):
        return
    apart = [path for path in then | now if then.get(path) != now.get(path)]
    path = apart[0] if apart else paths[0]
    raise UsageError(
        f"{place} holds the state of another algorithm or size: {path} was saved as "
        f"{then.get(path, 'nothing')}, now it is {now.get(path, 'nothing')} "
        f"({len(apart)} of {len(then | now)} leaves differ). "
        f"Restore it with the algorithm it was saved with."
    )


def line(error: BaseException) -> str:
    """The first line of an error, as a sentence."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0] if lines else 'no further word'}"
    return f"{text[:200].rstrip('.')}."
