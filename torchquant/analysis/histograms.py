"""Drawings of what a layer's float values look like beside the range of their fake-quant. Called by Comparison.plot."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.figure import Figure

from torchquant.files import save_figure


def draw_histograms(histogram: dict, path: str | os.PathLike) -> None:
    """Draws what Comparison.histogram returns."""
    grid, counts = np.asarray(histogram["edges"]), np.asarray(histogram["counts"])
    figure = Figure(figsize=(8, 6), layout="constrained")
    total, each = figure.subplots(2, 1, sharex=True)
    total.stairs(counts.sum(axis=0), grid, fill=True, color="#4c78a8")
    total.set_yscale("symlog", linthresh=1)
    total.set_ylabel("values")
    total.set_title(f"{histogram['layer']}: float values and range")
    each.pcolormesh(grid, np.arange(len(counts) + 1), np.log1p(counts), cmap="viridis", rasterized=True)
    each.set_ylabel("channel")
    each.set_xlabel("value")
    for axes in (total, each):
        for end in histogram["range"] or ():
            axes.axvline(end, color="#e45756", linestyle="--", linewidth=1)
    save_figure(figure, path)
