"""How a command is ended from outside: by an interrupt, or by SIGTERM, which is then one too."""

import signal
import threading
from types import FrameType


class Endings:
    """Context manager: in its block SIGINT and SIGTERM raise KeyboardInterrupt, so that all is put in order.

    came: the first of them that came, or None. The second ends the process at once: so it does for whoever has no
    patience, and as the interpreter ends, where it would show a traceback. A signal that is ignored, as of what a shell
    runs in its background, or that somebody else handles, stays so.
    """

    def __init__(self):
        self.came: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Endings":
        if threading.current_thread() is threading.main_thread():
            usual = (signal.default_int_handler, signal.SIG_DFL)
            found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            self._before = {number: handler for number, handler in found.items() if handler in usual}
        for number in self._before:
            signal.signal(number, self._heed)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if self.came else handler)

    def _heed(self, number: int, frame: FrameType | None) -> None:
        self.came = number
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt
