"""A run as it goes: a live line on a terminal, plain lines elsewhere, nothing when quiet."""

import time
from typing import Any

import rich.console
import rich.status

_PLAIN_SECONDS = 5.0  # between two plain lines of a phase


class Progress:
    """`begin` a phase, `advance` it, `close` at the end."""

    def __init__(self, console: rich.console.Console, quiet: bool):
        self.console, self.quiet = console, quiet
        self.status: Any = None
        self.phase, self.printed = "", 0.0

    def begin(self, phase: str, text: str) -> None:
        self.phase, self.printed = phase, time.monotonic()
        self._show(f"{phase}: {text}", last=True)

    def advance(
        self,
        done: int,
        total: int,
        *,
        steps_per_second: float,
        mean_return: float,
        remaining: float,
        lost: int = 0,
    ) -> None:
        """Shows where the phase is; `lost` seeds have diverged and are not in the mean."""
        parts = [
            f"{self.phase}: {done}/{total} updates",
            f"{_short(steps_per_second)} steps/s",
            f"return {mean_return:.4g}",
        ]
        if lost:
            parts.append(f"{lost} seeds diverged")
        if done < total:
            parts.append(f"{_clock(remaining)} left")
        self._show(", ".join(parts), last=done == total)

    def close(self) -> None:
        if self.status is not None:
            self.status.stop()
            self.status = None

    def _show(self, text: str, *, last: bool) -> None:
        if self.quiet:
            return
        if self.console.is_terminal:
            if self.status is None:
                self.status = self.console.status(text)
                self.status.start()
            self.status.update(text)
            if last and "updates" in text:
                self.console.print(text, highlight=False)
        elif last or time.monotonic() - self.printed > _PLAIN_SECONDS:
            self.printed = time.monotonic()
            print(text, file=self.console.file, flush=True)


def _short(number: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
