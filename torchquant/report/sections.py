"""What stands in each section of a report: from the `to_dict()` of a result to text, tables and plots. Called by page.write."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torchquant.analysis.comparison import BEST_SQNR_DB
from torchquant.analysis.validate import notes_of, rows_of
from torchquant.report.charts import BLUE, GREEN, ORANGE, RED, draw

@dataclass
class Column:
    heading: str
    kind: str = "plain"  # "number", "code", "text" (long, may wrap), "badge" (Badge) or "bar" (Bar)


@dataclass
class Badge:
    text: str
    tone: str = ""  # "good", "bad" or "accent"


@dataclass
class Bar:
    share: float  # of the full width, from 0 to 1
    text: str


@dataclass
class TableOf:
    """Columns in which every cell is empty are left out."""

    caption: str
    columns: list[Column]
    rows: list[tuple]

    def __post_init__(self):
        kept = [i for i in range(len(self.columns)) if not self.rows or any(row[i] != "" for row in self.rows)]
        self.columns = [self.columns[i] for i in kept]
        self.rows = [tuple(row[i] for i in kept) for row in self.rows]


@dataclass
class Tile:
    name: str
    value: str
    detail: str = ""
    tone: str = ""


@dataclass
class Picture:
    svg: str
    title: str
    caption: str


@dataclass
class Section:
    id: str
    title: str
    paragraphs: list[str] = field(default_factory=list)
    tiles: list[Tile] = field(default_factory=list)
    tables: list[TableOf] = field(default_factory=list)
    figures: list[Picture] = field(default_factory=list)
    more_figures: list[Picture] = field(default_factory=list)  # behind a fold
    notes: list[str] = field(default_factory=list)
    failures: list[str] | None = None  # None: no limits were set


def picture(plot, title: str, caption: str, height: float = 2.9) -> Picture:
    """Title and caption are also what a screen reader says."""
    return Picture(draw(plot, f"{title}: {caption}", height), title, caption)


def receipt(document: dict) -> Section:
    rows = document["rows"]
    lowered = [row for row in rows if row["precision"] != "float"]
    fallbacks = [row for row in rows if row["fallback"]]
    by_precision: dict[str, int] = {}
    for row in rows:
        by_precision[row["precision"]] = by_precision.get(row["precision"], 0) + 1
    tiles = [Tile(f"{precision} layers", str(count)) for precision, count in sorted(by_precision.items(), key=lambda item: item[0] == "float")]
    tiles.append(Tile("fallbacks", str(len(fallbacks)), "asked for integers, stayed float", "bad" if fallbacks else "good"))
    columns = [Column("layer"), Column("kind"), Column("runs in", "badge"), Column("kernel", "code"), Column("fused"), Column("why float", "text")]
    table = [
        (row["layer"], row["kind"], _precision(row), row["kernel"], ", ".join(row["fused"]), row["reason"])
        for row in rows
    ]  # fmt: skip
    return Section(
        "receipt",
        "Lowering receipt",
        [f"{len(lowered)} of {len(rows)} layers run on integers. For each, the kernel that runs it and what that kernel took in; for "
         "the others, why they stayed float."],
        tiles,
        [TableOf("Every layer in the order of the program", columns, table)],
    )  # fmt: skip


def _precision(row: dict) -> Badge:
    if row["fallback"]:
        return Badge("float (fallback)", "bad")
    return Badge(row["precision"], "" if row["precision"] == "float" else "accent")


def validation(document: dict) -> Section:
    accuracy, ratios = document["accuracy"], document["ratios"]
    low, high = accuracy["interval"]
    tiles = [
        Tile(
            accuracy["metric"],
            f"{accuracy['quantized']:.4f}",
            f"float {accuracy['float']:.4f}; drop {accuracy['drop']:.2g} [{low:.2g}, {high:.2g}]",
        )
    ]
    for name, key, gain in (("latency P50", "latency", "less time"), ("throughput", "throughput", "more"), ("file size", "size", "smaller"), ("peak memory", "memory", "less")):
        if ratios[key] is not None:
            tiles.append(_ratio_tile(name, ratios[key], key == "throughput"))
    columns = [Column("figure"), Column("float", "number"), Column("quantized", "number"), Column("quantized / float")]
    table = TableOf("Float and quantized model on the same data and machine", columns, rows_of(document))
    paragraphs = ["Does the quantized model still do its work, and what does it save? Ratios are quantized over float."]
    return Section("validation", "Validation", paragraphs, tiles, [table], notes=notes_of(document), failures=document.get("failures"))


def _ratio_tile(name: str, ratio: float, more_is_better: bool) -> Tile:
    gained = ratio > 1 if more_is_better else ratio < 1
    return Tile(name, f"{ratio:.2f}×", "of the float model's", "good" if gained else "bad")


def sensitivity(document: dict) -> Section:
    from torchquant.analysis.sensitivity_report import SensitivityReport

    report = SensitivityReport.from_dict(dict(document))
    judged_by_metric = report.float_metric is not None
    tiles = [Tile("layers scanned", str(len({row["layer"] for row in report.rows})))]
    if judged_by_metric:
        tiles.append(Tile("metric of the float model", f"{report.float_metric:.4g}", "" if report.higher_is_better else "lower is better"))
        for name, model in report.candidates.items():
            tiles.append(Tile(f"metric with all layers {name}", f"{model['metric']:.4g}", _sqnr(model["sqnr_db"]) and f"output SQNR {_sqnr(model['sqnr_db'])}"))
    points = report.pareto() if judged_by_metric else []
    return Section(
        "sensitivity",
        "Sensitivity of layers",
        ["Which layers hurt most when they are quantized, the worst first. They are the first to keep in float or at more bits."],
        tiles,
        [_ranking(report), *([_pareto_table(report, points)] if points else [])],
        [_pareto_picture(report, points)] if points else [],
        notes=["SQNR is that of the model's output against the float model's. Latency is of the layer by itself, with the kernel that ships."],
    )


def _ranking(report) -> TableOf:
    ranking = report.ranking
    drops = [_cost(row) for row in ranking]
    largest = max((abs(drop) for drop in drops if drop), default=1.0)
    columns = [Column("layer"), Column("kind"), Column("QConfig"), Column("drop of the metric", "bar"), Column("SQNR alone", "number"),
               Column("gain if float", "number"), Column("float ms", "number"), Column("quantized ms", "number"), Column("MB saved", "number")]  # fmt: skip
    rows = [
        (row["layer"], row["kind"], row["candidate"], "" if drop is None else Bar(max(drop, 0.0) / largest, f"{drop:+.4f}"),
         _sqnr(row["alone_sqnr_db"]), _number(row["but_one_gain"], "{:+.4f}"), _number(row["float_ms"], "{:.3f}"),
         "stays float" if row["kernel"] == "" else _number(row["quantized_ms"], "{:.3f}"), f"{row['float_mb'] - row['quantized_mb']:.3f}")
        for row, drop in zip(ranking, drops)
    ]  # fmt: skip
    return TableOf("Layers by what quantizing them costs", columns, rows)


def _cost(row: dict) -> float | None:
    return row["but_one_gain"] if row["alone_drop"] is None else row["alone_drop"]


def _pareto_quantity(report) -> tuple[str, str, float]:
    """(key of a point, its name, the float model's value)."""
    if report.float_latency_ms is None:
        return "size_mb", "weights and buffers in MB", report.float_size_mb
    return "latency_ms", "latency in ms", report.float_latency_ms


def _pareto_picture(report, points: list[dict]) -> Picture:
    key, name, of_float = _pareto_quantity(report)

    def plot(axes):
        axes.plot([point[key] for point in points], [point["metric"] for point in points], "o-", color=BLUE, markersize=5, label="mixed, predicted")
        axes.plot([of_float], [report.float_metric], "*", color=GREEN, markersize=12, label="float, measured")
        if key == "latency_ms":
            for marker, (candidate, model) in zip("sDv^", report.candidates.items()):
                axes.plot([model[key]], [model["metric"]], marker, color=ORANGE, markersize=7, label=f"all {candidate}, measured")
        axes.set_xlabel(name)
        axes.set_ylabel("metric" if report.higher_is_better else "metric (lower is better)")
        axes.legend()

    best, cheapest = points[-1], points[0]
    description = (
        f"Metric over {name}: {len(points)} mixed configurations from {cheapest[key]:.3g} with a predicted metric of {cheapest['metric']:.4g} to "
        f"{best[key]:.3g} with {best['metric']:.4g}; the float model has {of_float:.3g} and {report.float_metric:.4g}."
    )
    return picture(plot, f"Pareto plot: the best metric that each {name.split(' in ')[0]} allows.", description)


def _pareto_table(report, points: list[dict]) -> TableOf:
    key, name, _ = _pareto_quantity(report)
    columns = [Column(name, "number"), Column("predicted metric", "number"), Column("size in MB", "number"), Column("layers that stay float", "text")]
    rows = [
        (f"{point[key]:.4g}", f"{point['metric']:.4f}", f"{point['size_mb']:.3f}",
         ", ".join(layer for layer, candidate in point["choices"].items() if candidate == "float") or "none")
        for point in points
    ]  # fmt: skip
    return TableOf("The configurations of the Pareto plot", columns, rows)


def comparison(document: dict) -> Section:
    rows, first_bad = document["rows"], document["first_bad"]
    columns = [Column("layer"), Column("kind"), Column("verdict", "badge"), Column("SQNR", "bar"), Column("cosine", "number"),
               Column("max error", "number"), Column("clipped", "number"), Column("saturated", "number"), Column("SQNR converted", "number"),
               Column("note", "text")]  # fmt: skip
    table = [_compared_row(row, row["layer"] == first_bad, document["min_sqnr_db"]) for row in rows]
    drawable = sorted((row for row in rows if row["histogram"] and row["observed"]), key=_worst_first)
    pictures = [_histogram(row) for row in (drawable if document.get("all_histograms") else drawable[:_HISTOGRAMS])]
    which = "all layers" if len(pictures) == len(drawable) else f"the {len(pictures)} layers with the lowest SQNR, of {len(drawable)}"
    return Section(
        "comparison",
        "Layer by layer",
        [document["sentence"], *document["remarks"]],
        [],
        [TableOf("Each layer's output in the quantized model against the float model's, in running order", columns, table)],
        pictures[:_HISTOGRAMS_SHOWN],
        pictures[_HISTOGRAMS_SHOWN:],
        notes=["Errors add up along the network: each layer gets its inputs from the quantized layers before it.",
               "Clipped: float values outside the range. Saturated: codes at an end of the range.",
               f"Histograms show the float values of {which}, the lowest SQNR first; dashed lines are the range that the codes can represent."],
    )  # fmt: skip


_HISTOGRAMS_SHOWN, _HISTOGRAMS = 4, 24  # at once, and with those behind the fold: each takes some 15 kB


def _shown_side(row: dict) -> dict:
    return row["prepared"] or row["converted"] or {}


def _worst_first(row: dict) -> float:
    side = _shown_side(row)
    if not side or side["exact"]:
        return math.inf
    return -math.inf if side["sqnr_db"] is None else side["sqnr_db"]


def _compared_row(row: dict, is_first_bad: bool, min_sqnr_db: float) -> tuple:
    side, converted = _shown_side(row), row["converted"] or {}
    sqnr = side.get("sqnr_db")
    low = bool(side) and not side["exact"] and (sqnr is None or sqnr < min_sqnr_db)  # None: not finite, or no signal
    share = 1.0 if side.get("exact") else min(max((sqnr or 0.0) / BEST_SQNR_DB, 0.0), 1.0)
    verdict = Badge("goes wrong first", "bad") if is_first_bad else Badge("low", "bad") if low else Badge("good", "good") if side else ""
    return (
        row["layer"], row["kind"], verdict, Bar(share, _db(side)) if side else "",
        _number(side.get("cosine"), "{:.5f}"), _number(side.get("max_abs_error"), "{:.3g}"), _number(row["clipped_rate"], "{:.2%}"),
        _number(side.get("saturation_rate"), "{:.2%}"), _db(converted), row["converted_note"],
    )  # fmt: skip


def _db(side: dict) -> str:
    if not side:
        return ""
    if side["sqnr_db"] is None:
        return "exact" if side["exact"] else "not finite" if side["nonfinite"] else "no signal"
    return f"{side['sqnr_db']:.1f} dB"


def _histogram(row: dict) -> Picture:
    edges, counts = row["histogram"]["edges"], row["histogram"]["counts"]

    def plot(axes):
        axes.stairs(counts, edges, fill=True, color=BLUE)
        for end in row["range"] or ():
            axes.axvline(end, color=RED, linestyle="--", linewidth=1.4)
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("value")
        axes.set_ylabel("count")

    low, high = row["observed"]
    range_text = f"; the codes represent {row['range'][0]:.4g} to {row['range'][1]:.4g}" if row["range"] else ""
    caption = f"Float values from {low:.4g} to {high:.4g}{range_text}; SQNR {_db(_shown_side(row)) or 'unknown'}."
    return picture(plot, row["layer"], caption, height=2.4)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _sqnr(value: float | None) -> str:
    return "" if value is None else "exact" if value == math.inf else "not finite" if value == -math.inf else f"{value:.1f} dB"


def calibration(document: dict) -> Section:
    """`document["parts"]` holds any of: a ClippingReport, a CalibrationCurve, what `torchquant calibration show --json` prints."""
    section = Section("calibration", "Calibration")
    for part in document["parts"]:
        if "movement" in part:
            section.paragraphs.append(part["sentence"])
            section.figures.append(_curve(part))
        elif part["rows"] and "advice" in part["rows"][0]:
            section.tables.append(_clipping_table(part["rows"]))
        else:
            section.tables.append(_ranges_table(part["rows"]))
    return section


def _curve(part: dict) -> Picture:
    def plot(axes):
        for values in part["movement"].values():
            axes.plot(part["samples"], values, color=BLUE, alpha=0.35, linewidth=1)
        axes.plot(part["samples"], part["worst"], color=ORANGE, linewidth=2, label="range that moves most")
        axes.axhline(part["tolerance"], color=GREEN, linestyle="--", linewidth=1.2, label=f"tolerance {part['tolerance']:.1%}")
        axes.set_yscale("symlog", linthresh=part["tolerance"] / 10)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("calibration samples")
        axes.set_ylabel("distance from the final range")
        axes.legend()

    return picture(plot, "Convergence of the ranges.", f"{part['sentence']} Distances are fractions of the final range's width.")


def _clipping_table(rows: list[dict]) -> TableOf:
    columns = [Column("tensor"), Column("read by"), Column("range", "number"), Column("observed", "number"), Column("clipped", "number"),
               Column("outlier channels", "number"), Column("advice", "text")]  # fmt: skip
    table = [
        (row["fake_quant"].removeprefix("activation_fake_quants."), ", ".join(row["layers"]), _interval(row["range"]), _interval(row["observed"]),
         f"{row['clipped_rate']:.2%}", str(len(row["outlier_channels"])), row["advice"])
        for row in rows
    ]  # fmt: skip
    return TableOf("Clipped activations: float values that lie outside the range of their codes", columns, table)


def _ranges_table(rows: list[dict]) -> TableOf:
    columns = [Column("fake-quant"), Column("observer"), Column("codes", "number"), Column("observed", "number"), Column("scale", "number"),
               Column("zero point", "number")]  # fmt: skip
    table = [
        (row["fake_quant"], row["observer"], _interval(row["codes"]), _interval((min(row["min_val"]), max(row["max_val"]))),
         f"{max(row['scale']):.6g}", f"{max(row['zero_point']):.6g}")
        for row in rows
    ]  # fmt: skip
    return TableOf("Calibrated ranges; where there is one per channel, the outermost values", columns, table)


def _interval(ends) -> str:
    return "{:.4g} … {:.4g}".format(*ends)
