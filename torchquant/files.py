"""Writing files whole or not at all, as every save and every plot does."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes beside `path` and then renames: a reader sees the old file or the new one, and of two writers the later one wins whole."""
    path = Path(path)
    descriptor, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, _mode_of(path))
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def save_figure(figure: Figure, path: str | os.PathLike, **options) -> None:
    """Like `figure.savefig(path, **options)`, but a file that was there is replaced only once the new one is whole."""
    path = Path(path)
    # In a folder beside `path`: the drawing has its own name there, of which matplotlib takes the format.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as beside:
        whole = Path(beside) / path.name
        figure.savefig(whole, **options)
        whole.replace(path)


def _mode_of(path: Path) -> int:
    """That of the file that is replaced, or what a plain open would have given a new one."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
