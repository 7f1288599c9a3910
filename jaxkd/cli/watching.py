"""What happens beside a run: seconds that jax compiles, and signals that ask to stop."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax


@contextlib.contextmanager
def compilation() -> Iterator[Callable[[], float]]:
    """A function that says how many seconds jax has traced, lowered and compiled since.

    What is nested counts once.
    """
    spans: list[tuple[float, float]] = []

    def record(event: str, start_time: float, end_time: float, **kwargs: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            # An inner span is reported before the one around it.
            while spans and spans[-1][0] >= start_time:
                spans.pop()
            spans.append((start_time, end_time))

    jax.monitoring.register_event_time_span_listener(record)
    try:
        yield lambda: sum(end - start for start, end in spans)
    finally:
        jax.monitoring.unregister_event_time_span_listener(record)


@contextlib.contextmanager
def signals() -> Iterator[Callable[[], str]]:
    """A function that names the signal that asked to stop, "" before one did.

    A second signal stops at once.
    """
    seen: list[str] = []
    before = {}

    def note(number: int, frame: Any) -> None:
        seen.append(signal.Signals(number).name)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    # Only the main thread may handle signals (ValueError); in another one they are not ours.
    with contextlib.suppress(ValueError):
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: seen[0] if seen else ""
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
