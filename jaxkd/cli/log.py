"""metrics.jsonl: its lines come at fixed updates, so that a resumed run writes the same bytes.

Legend of shapes: `n` seeds, `U` updates of a chunk.
"""

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.cli.directory import json_line, writing

METRICS = "metrics.jsonl"
MARK = 40  # bytes of a mark: a length, and the SHA-256 of what is before
_LINES = 200  # of one phase, at most

Rows = dict[str, np.ndarray]  # metrics [U, n] by name


class Log:
    """The file, and how much of it is believed.

    A checkpoint holds a `mark`; whoever goes on from there drops what came after it.
    """

    def __init__(self, path: Path):
        self.path, self._believed = path, _mark(b"")
        self.phases: list[str] = []  # that are finished
        self._sha, self._length = hashlib.sha256(), 0

    def append(self, **values: Any) -> None:
        """One line at the end."""
        line = json_line(values).encode()
        with writing(self.path, "ab") as file:
            file.write(line)
        self._sha.update(line)
        self._length += len(line)

    def mark(self) -> np.ndarray:
        """Of what is there now, on disk when this returns; uint8 [MARK]."""
        if self._length:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        here = self._length.to_bytes(8, "little") + self._sha.digest()
        return np.frombuffer(here, np.uint8)

    def believe(self, mark: Any, finished: str = "") -> None:
        """What is there at the mark is not written again: that of a finished phase, by name."""
        self._believed = np.asarray(mark, np.uint8).tobytes()
        self.phases += [finished] if finished else []

    def cut(self) -> None:
        """Drops what is behind the mark that was believed last."""
        there = self.path.read_bytes() if self.path.exists() else b""
        head = there[: int.from_bytes(self._believed[:8], "little")]
        if _mark(head) != self._believed:
            print(
                f"warning: {self.path} is not what was written: what is resumed is right, but "
                f"lines before it are damaged or missing.",
                file=sys.stderr,
            )
        if len(head) < len(there):
            os.truncate(self.path, len(head))
        self._sha, self._length = hashlib.sha256(head), len(head)

    def curve(self, phase: str, name: str) -> np.ndarray:
        """A metric of a phase at each of its lines [lines, n]; [0] where it has none."""
        found = []
        for line in self.path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # a damaged line: `cut` has warned
                values = json.loads(line)
                if values["phase"] == phase and name in values["seeds"]:
                    found.append(values["seeds"][name])
        return np.array(found, float)


def _mark(content: bytes) -> bytes:
    return len(content).to_bytes(8, "little") + hashlib.sha256(content).digest()


class Window:
    """Updates since the last line: every `size`-th one makes a line of their means."""

    def __init__(self, num_updates: int):
        self.size = -(-num_updates // _LINES)
        self.rows: Rows = {}
        self.count = 0

    def add(self, rows: Rows) -> list[Rows]:
        """The groups of rows that are full now, each [size, n]."""
        joined = {
            name: np.concatenate([self.rows[name], values]) if self.count else values
            for name, values in rows.items()
        }
        total = self.count + len(next(iter(rows.values())))
        full = [
            {name: values[start : start + self.size] for name, values in joined.items()}
            for start in range(0, total - self.size + 1, self.size)
        ]
        self.count = total % self.size
        self.rows = {name: values[total - self.count :] for name, values in joined.items()}
        return full

    def padded(self) -> Rows:
        """The rows [size, n], zeros behind them: one shape for every checkpoint."""
        return {
            name: np.concatenate([x, np.zeros((self.size - len(x), *x.shape[1:]), x.dtype)])
            for name, x in self.rows.items()
        }

    def resume(self, padded: Rows, done: int) -> None:
        """Goes on with what `padded` gave after `done` updates."""
        self.count = done % self.size
        self.rows = {name: np.asarray(values)[: self.count] for name, values in padded.items()}
