"""Writing a drawing to a file whole or not at all. Every plot of this folder ends here."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from matplotlib.figure import Figure


def save_figure(figure: Figure, path: str | os.PathLike, **options) -> None:
    """Like `figure.savefig(path, **options)`, but a file that was there is replaced only once the new one is whole."""
    path = Path(path)
    # In a folder beside `path`: the drawing has its own name there, of which matplotlib takes the format.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as beside:
        whole = Path(beside) / path.name
        figure.savefig(whole, **options)
        whole.replace(path)
