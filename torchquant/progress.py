"""Progress bars for whatever may take more than two seconds: calibrate, convert, validate and their like open one each."""

from __future__ import annotations

import threading

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SHOW_AFTER_SECONDS = 2.0

_lock = threading.RLock()
_display: Progress | None = None  # one for the process: two live displays would overwrite each other's lines
_shown = 0  # how many bars are on it


class ProgressBar:
    """A bar on stderr for someone who is watching and would otherwise wait: on a terminal, from the third second on.

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
        console = Console(stderr=True)
        if console.is_terminal:
            self._timer = threading.Timer(SHOW_AFTER_SECONDS, self._show, [console])
            self._timer.daemon = True
            self._timer.start()
        return self

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

    def _show(self, console: Console) -> None:
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
