"""What stands in each section of a report: from the `to_dict()` of a result to text, tables and plots. Called by page.write."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from torchquant.analysis.validate import notes_of, rows_of
from torchquant.report.charts import draw

_chart_numbers = itertools.count(1)


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
    caption: str
    columns: list[Column]
    rows: list[tuple]


@dataclass
class Tile:
    name: str
    value: str
    detail: str = ""
    tone: str = ""


@dataclass
class Picture:
    svg: str
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


def picture(plot, description: str, caption: str, height: float = 2.9) -> Picture:
    return Picture(draw(plot, description, next(_chart_numbers), height), caption)


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
            f"{accuracy['quantized']:.4g}",
            f"float {accuracy['float']:.4g}; drop {accuracy['drop']:.2g} [{low:.2g}, {high:.2g}]",
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
