"""The report's plots as SVG text for inlining: they take the page's text colour, so that they suit light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape

_INK = "#010203"  # stands for the page's text colour until the SVG is done
BLUE, ORANGE, GREEN, RED = "#3d8bd4", "#d9822b", "#2f9e6b", "#d3494e"
# Drawn at the width of a phone, so that the text is readable there; wider screens enlarge it.
_WIDTH_INCHES = 4.4
_STYLE = {
    "svg.fonttype": "none",  # text stays text: searchable, and drawn in a font that the reader has
    "svg.hashsalt": "torchquant",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.18,
    "legend.frameon": False,
    "legend.fontsize": 9,
    **{f"{part}.color": _INK for part in ("text", "xtick", "ytick", "grid")},
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
}


def draw(plot: Callable, description: str, height: float = 2.9) -> str:
    """`plot(axes)` draws; `description` is the text for those who do not see it."""
    import matplotlib  # here, because importing torchquant should not take the time of what only reports need
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")  # not pyplot: it would keep the user's figures company
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        plot(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _inlined(buffer.getvalue(), description)


def with_own_ids(svg: str, number: int) -> str:
    """Ids hold for a whole page, and every figure of matplotlib has the same ones: this is the page's chart `number`."""
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\1c{number}-", svg)


def _inlined(svg: str, description: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace(_INK, "currentColor")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1)
