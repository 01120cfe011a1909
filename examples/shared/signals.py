"""Signals that end a run: its state is saved before."""

from __future__ import annotations

import signal
import sys
import threading
import time


class Signals:
    """SIGTERM and SIGINT, once they are watched: the first is noted, a later one acts at once."""

    SOON = 2.0  # seconds in which another one is the same, which torchrun passes on

    def __init__(self):
        self.came, self.before = None, {}

    def watch(self):
        if self.before or threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) not in (None, signal.SIG_IGN):
                self.before[number] = signal.signal(number, self._note)

    def _note(self, number, frame):
        if self.came is None:
            self.came, self.since = number, time.monotonic()
        elif time.monotonic() - self.since > self.SOON:
            self.act(number)

    def restore(self):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def act(self, number):
        """What the signal does to a program that does not watch it."""
        self.restore()
        sys.stdout.flush()
        sys.stderr.flush()
        signal.raise_signal(number)
        sys.exit(128 + number)  # where a handler of the caller's returns
