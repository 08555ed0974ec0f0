"""Ctrl-C and the scheduler's signal: the first asks a run to save and to stop, the second stops it at once."""

import signal
import sys
import threading

from tqdm import tqdm

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """`number`: the signal that came since `listen`, or None."""

    def __init__(self):
        self.number: int | None = None
        self._old: dict = {}

    def listen(self) -> None:
        """From now on; in another thread than the main one Python allows no handlers, and none is set."""
        if threading.current_thread() is threading.main_thread():
            self._old = {s: signal.signal(s, self._on_signal) for s in SIGNALS}

    def restore(self) -> None:
        """The handlers that were there before."""
        for s, handler in self._old.items():
            signal.signal(s, handler)
        self._old = {}

    def _on_signal(self, number: int, _) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
        tqdm.write("Stopping after this chunk (again: at once, without saving).", file=sys.stderr)
