"""The picture of a scan: bars of what each layer costs, and the accuracy that each latency or size allows."""

from __future__ import annotations

import os

from matplotlib.figure import Figure  # without pyplot: no window, no global state

from torchquant.files import save_figure
from torchquant.analysis.sensitivity_report import drawable_db

_MOST_BARS = 40


def plot(report, path: str | os.PathLike) -> None:
    """Writes `path`; a file that was there is replaced once the new one is whole."""
    ranking = report.ranking
    shown = ranking[:_MOST_BARS]
    figure = Figure(figsize=(14, max(4.0, 1.5 + 0.25 * len(shown))), layout="constrained")
    bars, pareto = figure.subplots(1, 2)
    _draw_bars(bars, report, shown, len(ranking))
    _draw_pareto(pareto, report)
    save_figure(figure, path, dpi=120)


def _draw_bars(axes, report, rows: list[dict], total: int) -> None:
    drops, label = _sensitivities(report, rows)
    candidates = list(report.candidates)
    colors = [f"C{candidates.index(row['candidate'])}" for row in rows]
    names = [row["layer"] if len(candidates) == 1 else f"{row['layer']} ({row['candidate']})" for row in rows]
    axes.barh(range(len(rows)), drops, color=colors)
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(label)
    axes.set_title("Sensitivity of layers" + (f" (the first {len(rows)} of {total})" if len(rows) < total else ""))


def _sensitivities(report, rows: list[dict]) -> tuple[list[float], str]:
    if report.float_metric is None:
        state = "alone" if report.mode != "each_but_one" else "but_one"
        label = "SQNR of the output in dB, " + ("this layer alone quantized" if state == "alone" else "all layers but this quantized")
        return [drawable_db(row[f"{state}_sqnr_db"]) for row in rows], label
    if report.mode == "each_but_one":
        return [row["but_one_gain"] for row in rows], "gain of the metric where this layer alone stays float"
    return [row["alone_drop"] for row in rows], "drop of the metric where this layer alone is quantized"


def _draw_pareto(axes, report) -> None:
    quantity, label = ("size_mb", "weights and buffers in MB") if report.float_latency_ms is None else ("latency_ms", "latency in ms")
    if report.float_metric is None:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no metric was given", ha="center", va="center")
        return
    points = report.pareto(quantity)
    axes.plot([point[quantity] for point in points], [point["metric"] for point in points], "o-", label="mixed precision (predicted)")
    float_value = report.float_size_mb if quantity == "size_mb" else report.float_latency_ms
    axes.plot([float_value], [report.float_metric], "k*", markersize=12, label="float (measured)")
    if quantity == "latency_ms":
        for index, (name, model) in enumerate(report.candidates.items()):
            axes.plot([model["latency_ms"]], [model["metric"]], f"C{index + 1}s", label=f"all {name} (measured)")
    axes.set_xlabel(label)
    axes.set_ylabel("metric" + ("" if report.higher_is_better else " (lower is better)"))
    axes.set_title("Accuracy and cost")
    axes.grid(alpha=0.3)
    axes.legend()
