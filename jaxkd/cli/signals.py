"""Signals that ask to stop, heard from the first millisecond: nothing slow is imported here.

A handler of Python's own waits until the main thread is back from the compiler, and an exception
that it raises inside an import is swallowed. So a thread listens.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

INTERRUPTED = 75  # exit code: stopped, and what there was is saved
_ASKING = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Called, it names the signal that asked to stop: "" before one did.

    As long as nothing is kept, a signal ends the process at once; a second one always does.
    """

    def __init__(self):
        self.keeps = False  # True: who is asked to stop saves what there is
        self._asked = ""

    def __call__(self) -> str:
        return self._asked

    def ask(self, number: int) -> None:
        """What a signal does."""
        name = signal.Signals(number).name
        if self.keeps and not self._asked:
            self._asked = name
            return
        kept = (
            "Checkpoints are whole: `jaxkd resume` goes on." if self._asked else "Nothing is lost."
        )
        os.write(2, f"{name}: stopped at once. {kept}\n".encode())
        os._exit(128 + number if self._asked else INTERRUPTED)


@contextlib.contextmanager
def heard() -> Iterator[Stop]:
    """A `Stop` that hears SIGINT and SIGTERM."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals: in another one they are not ours
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def listen() -> None:
        while number := os.read(reader, 1)[0]:
            if number in _ASKING:
                stop.ask(number)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    others = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # What each does is done by the listener; without a handler Python would end the process.
    before = {number: signal.signal(number, lambda *_: None) for number in _ASKING}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(others)
        os.write(writer, b"\0")
        listener.join()
        os.close(reader)
        os.close(writer)
