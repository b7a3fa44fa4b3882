"""How results with a `table()` print: the same in a notebook, on a terminal and as text."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def new_table(**options) -> Table:
    from rich.table import Table  # here and below: only who prints something pays for rich

    return Table(**options)


class ShownAsTable:
    """Mixed into what has a `table()`, which rich and `print` then show."""

    _text_width = 160  # of str(), in columns

    def table(self) -> Table:
        raise NotImplementedError

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=self._text_width)
        console.print(self)
        return console.file.getvalue()
