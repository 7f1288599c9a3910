"""What happens beside a run: seconds that jax compiles."""

import contextlib
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
