"""Drawings of what a layer's float values look like beside the range of their fake-quant. Called by Comparison."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.figure import Figure

from torchquant.analysis.comparison import ComparedLayer, histogram_of

_BINS = 160


def channel_counts(row: ComparedLayer) -> tuple[np.ndarray, np.ndarray]:
    """(edges of bins that cover the values and the range, counts [channels, bins])."""
    channels = histogram_of(row.histogram) if row.histogram is not None and row.histogram.observed else []
    if not channels:
        raise ValueError(f"Comparison: {row.layer!r} has no histogram, because none of its values was compared")
    low, high = row.observed if row.range is None else (min(row.observed[0], row.range[0]), max(row.observed[1], row.range[1]))
    margin = 0.02 * (high - low) or 1.0
    grid = np.linspace(low - margin, high + margin, _BINS + 1)
    return grid, np.stack([_on_grid(np.asarray(edges), values.numpy(), grid) for edges, values in channels])


def draw_histograms(row: ComparedLayer, path: str | os.PathLike) -> None:
    grid, counts = channel_counts(row)
    figure = Figure(figsize=(8, 6), layout="constrained")
    total, each = figure.subplots(2, 1, sharex=True)
    total.stairs(counts.sum(axis=0), grid, fill=True, color="#4c78a8")
    total.set_yscale("symlog", linthresh=1)
    total.set_ylabel("values")
    total.set_title(f"{row.layer}: float values and range")
    each.pcolormesh(grid, np.arange(len(counts) + 1), np.log1p(counts), cmap="viridis", rasterized=True)
    each.set_ylabel("channel")
    each.set_xlabel("value")
    for axes in (total, each):
        for end in row.range or ():
            axes.axvline(end, color="#e45756", linestyle="--", linewidth=1)
    figure.savefig(path)


def _on_grid(edges: np.ndarray, counts: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The counts spread over the bins of another grid, evenly inside each of their own."""
    return np.diff(np.interp(grid, edges, np.concatenate([[0.0], np.cumsum(counts)])))
