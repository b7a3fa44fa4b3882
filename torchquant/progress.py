"""Progress bars for whatever may take more than two seconds: calibrate, convert, validate and their like open one each."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

SHOW_AFTER_SECONDS = 2.0
LINE_EVERY_SECONDS = 10.0

_lock = threading.RLock()
_display: Progress | None = None  # one for the process: two live displays would overwrite each other's lines
_shown = 0  # how many bars are on it
_lines = False  # whether lines stand for bars where there is no terminal


@contextlib.contextmanager
def plain_lines() -> Iterator[None]:
    """Within it, work without a terminal says in lines on stderr how far it is: for commands, whose output is read in logs."""
    global _lines
    before, _lines = _lines, True
    try:
        yield
    finally:
        _lines = before


class ProgressBar:
    """A bar on stderr for someone who is watching and would otherwise wait: on a terminal, from the third second on. Elsewhere
    nothing, or within `plain_lines` a line every ten seconds.

    Without `total` it only shows that work goes on. A timer shows it, not the first step, so that a single long call has one
    too. Bars inside one another stand below one another.

        with ProgressBar("calibrating", total=len(batches)) as bar:
            for batch in batches:
                ...
                bar.advance()
    """

    def __init__(self, description: str, total: int | None = None):
        self.description = description
        self.total = total
        self.done = 0
        self._task = None
        self._timer = None

    def __enter__(self) -> ProgressBar:
        try:
            from rich.console import Console  # only who runs something pays for rich
        except ModuleNotFoundError:  # a source tree beside torch alone, as on a GPU machine: no bar
            return self
        self._started = time.monotonic()
        console = Console(stderr=True)
        if console.is_terminal:
            self._start_timer(SHOW_AFTER_SECONDS, self._show, console)
        elif _lines:
            self._start_timer(SHOW_AFTER_SECONDS, self._write_line)
        return self

    def _start_timer(self, seconds: float, action, *arguments) -> None:
        self._timer = threading.Timer(seconds, action, arguments)
        self._timer.daemon = True
        self._timer.start()

    def advance(self, steps: int = 1) -> None:
        with _lock:
            self.done += steps
            if self._task is not None:
                _display.update(self._task, completed=self.done)

    def __exit__(self, *error) -> None:
        global _display, _shown
        with _lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._task is None:
                return
            _display.remove_task(self._task)
            self._task = None
            _shown -= 1
            if _shown == 0:
                _display.stop()
                _display = None

    def _write_line(self) -> None:
        with _lock:
            if self._timer is None:
                return
            steps = "" if self.total is None else f" {self.done} of {self.total},"
            print(f"{self.description}:{steps} {time.monotonic() - self._started:.0f} s", file=sys.stderr, flush=True)
            self._start_timer(LINE_EVERY_SECONDS, self._write_line)

    def _show(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        global _display, _shown
        with _lock:
            if self._timer is None:  # the work ended while the timer fired
                return
            if _display is None:
                columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
                _display = Progress(*columns, console=console, transient=True)
                _display.start()
            self._task = _display.add_task(self.description, total=self.total, completed=self.done)
            _shown += 1
