"""The progress bar of everything that may take more than two seconds: calibration, comparisons, searches."""

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

_BAR_AFTER_SECONDS = 2.0


class Bar:
    """A progress bar for someone who is watching and would otherwise wait: on a terminal, from the third second on."""

    def __init__(self, total, doing):
        self.total = total
        self.doing = doing  # such as "calibrating"
        self.console = Console(stderr=True)
        self.started = time.monotonic()
        self.progress = None

    def __enter__(self):
        return self

    def advance(self, done):
        if self.progress is None:
            if not self.console.is_terminal or time.monotonic() - self.started < _BAR_AFTER_SECONDS:
                return
            columns = TextColumn(self.doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self.progress = Progress(*columns, console=self.console, transient=True)
            self.task = self.progress.add_task("", total=self.total)
            self.progress.start()
        self.progress.update(self.task, completed=done)

    def __exit__(self, *error):
        if self.progress is not None:
            self.progress.stop()
