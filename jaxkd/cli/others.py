"""What other libraries print of a disk that is full: a command says it itself, once.

Imports no jax.
"""

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

_FULL = "(No space left on device|File too large|Disk quota exceeded)"
_PROGRAM = "(?s)Error {} persistent compilation cache entry .*{}"
_PROGRAMS = (  # not kept; kept in part by a disk that was full then, and compiled anew
    _PROGRAM.format("writing", _FULL),
    _PROGRAM.format("reading", "truncated"),
)


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Leaves out what follows from a full disk in caches and in threads, and nothing else."""
    fonts, before = logging.getLogger("matplotlib.font_manager"), sys.unraisablehook

    def after(said: Any) -> None:
        """Writers of a checkpoint that has failed call a loop that Orbax has closed since."""
        if str(said.exc_value) != "Event loop is closed":
            before(said)

    fonts.addFilter(_not_saved)
    sys.unraisablehook = after
    try:
        with warnings.catch_warnings():
            for said in _PROGRAMS:
                warnings.filterwarnings("ignore", said, UserWarning)
            yield
    finally:
        sys.unraisablehook = before
        fonts.removeFilter(_not_saved)


def _not_saved(record: logging.LogRecord) -> bool:
    """Whether it is another message than that matplotlib keeps no list of fonts."""
    return "Could not save font_manager cache" not in record.msg
