"""Comparison: what `compare` returns: a row per layer with its running sums, the verdict, the table and the drawings."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchquant import _C
from torchquant.analysis.sqnr import sqnr_db
from torchquant.errors import no_such_layer
from torchquant.observers import HistogramObserver, make_observer
from torchquant.qconfig import QuantSpec
from torchquant.shown_as_table import ShownAsTable, new_table

if TYPE_CHECKING:
    import numpy as np

# The signal-to-noise ratio of a full-range signal in 8 bits: 6.02 * 8 + 1.76 dB. Where the first layer's fall is measured from, and a
# full bar in the report.
BEST_SQNR_DB = 50.0
_HISTOGRAM_BINS = 512
_REPORT_BINS = 80
_DETAIL_BINS = 160


@dataclass
class Errors:
    """Running sums of one value against another."""

    signal: float = 0.0
    noise: float = 0.0
    other: float = 0.0
    product: float = 0.0
    max_abs_error: float = 0.0
    count: int = 0
    nonfinite: int = 0  # values that are NaN or infinite where the expected one is finite; left out of the sums

    def add(self, expected: Tensor, value: Tensor) -> None:
        expected, value = expected.detach().double(), value.detach().double()
        finite = expected.isfinite() & value.isfinite()
        self.nonfinite += int((expected.isfinite() & ~value.isfinite()).sum())
        expected, value = expected[finite], value[finite]
        self.count += finite.numel()
        self.signal += float(expected.square().sum())
        self.noise += float((value - expected).square().sum())
        self.other += float(value.square().sum())
        self.product += float((expected * value).sum())
        if expected.numel():
            self.max_abs_error = max(self.max_abs_error, float((value - expected).abs().max()))

    @property
    def sqnr_db(self) -> float:
        """10 log10(signal / noise); infinite where both values are the same, -infinite where one is not finite or the expected one
        is all zero and the other is not."""
        if self.nonfinite:
            return -math.inf
        return sqnr_db(self.signal, self.noise)

    @property
    def sqnr_text(self) -> str:
        return _db(self.sqnr_db) if self.sqnr_db > -math.inf else "not finite" if self.nonfinite else "no signal"

    @property
    def cosine(self) -> float:
        norms = math.sqrt(self.signal * self.other)
        return self.product / norms if norms else float(self.signal == self.other)

    def to_dict(self) -> dict | None:
        if not self.count:
            return None
        sqnr = self.sqnr_db
        return {
            "sqnr_db": sqnr if math.isfinite(sqnr) else None,  # JSON knows no infinity
            "exact": sqnr == math.inf,
            "cosine": self.cosine,
            "max_abs_error": self.max_abs_error,
            "nonfinite": self.nonfinite,
        }


@dataclass
class Side:
    """One quantized form of a layer's value: its errors against the float one, and its codes."""

    errors: Errors = field(default_factory=Errors)
    codes: int = 0
    saturated: int = 0

    def add_codes(self, codes: Tensor, spec) -> None:
        """`spec` has quant_min, quant_max and zero_point. A code that is the zero point is no saturation: the zeros behind a ReLU."""
        bounds = getattr(spec, "spec", spec)
        zero_point = torch.as_tensor(spec.zero_point).detach().to(codes.device).round()
        at_end = (codes == bounds.quant_min) | (codes == bounds.quant_max)
        self.saturated += int((at_end & (codes != zero_point)).sum())
        self.codes += codes.numel()

    @property
    def saturation_rate(self) -> float | None:
        return self.saturated / self.codes if self.codes else None

    def to_dict(self) -> dict | None:
        values = self.errors.to_dict()
        return values and {**values, "saturation_rate": self.saturation_rate}


@dataclass
class ComparedLayer:
    """One row. `prepared` and `converted` are compared with the float value, `against_prepared` is converted against prepared."""

    key: str  # path of the module or fake-quant, with "#2" for its second call
    layer: str  # path of the module in the float model ("conv#2" for its second call), or prepare's name of an operation's result
    kind: str  # class of the module, or "operation"
    place: str | None = None  # path of the fake-quant that stands on this value
    prepared: Side = field(default_factory=Side)
    converted: Side = field(default_factory=Side)
    against_prepared: Errors = field(default_factory=Errors)
    converted_note: str = ""  # why the converted model has no such value
    computed_by: str | None = None  # the receipt's layer whose op gives it
    range: tuple[float, float] | None = None  # what the fake-quant can represent
    observed: tuple[float, float] = (math.inf, -math.inf)  # of the float values
    clipped: int = 0
    clippable: int = 0
    histogram: HistogramObserver | None = None  # of the float values, one per channel
    channels: int = 0

    def start_histogram(self, value: Tensor, has_conv1d: bool) -> None:
        axis = channel_axis(value, has_conv1d)
        self.channels = value.size(axis) if value.dim() > 1 else 0
        spec = QuantSpec.activation(axis=axis if self.channels else None, observer="mse", bins=_HISTOGRAM_BINS)
        self.histogram = make_observer(spec).to(value.device)

    def observe(self, value: Tensor) -> None:
        axis = self.histogram.spec.axis
        if axis is None or value.size(axis) == self.channels:  # drawings are of batches with as many channels as the first
            self.histogram(value)
        finite = value[value.isfinite()]
        if finite.numel():
            self.observed = min(self.observed[0], float(finite.min())), max(self.observed[1], float(finite.max()))

    def add_clipped(self, value: Tensor, fake_quant) -> None:
        self.range = representable_range(fake_quant)
        self.clipped += int(clipped_mask(value, fake_quant).sum())
        self.clippable += value.numel()

    @property
    def clipped_rate(self) -> float | None:
        return self.clipped / self.clippable if self.clippable else None

    @property
    def worse(self) -> tuple[str, Errors] | None:
        """("prepared" or "converted", its errors), whichever is further from the float value; None where neither has one."""
        sides = [(name, getattr(self, name).errors) for name in ("prepared", "converted")]
        return min((side for side in sides if side[1].count), key=lambda side: side[1].sqnr_db, default=None)

    @property
    def sqnr_db(self) -> float | None:
        """Of the prepared or the converted model, whichever is lower."""
        return self.worse and self.worse[1].sqnr_db

    def to_dict(self) -> dict:
        return {
            "layer": self.layer,
            "kind": self.kind,
            "fake_quant": self.place,
            "prepared": self.prepared.to_dict(),
            "converted": self.converted.to_dict(),
            "converted_against_prepared": self.against_prepared.to_dict(),
            "converted_note": self.converted_note,
            "computed_by": self.computed_by,
            "clipped_rate": self.clipped_rate,
            "range": self.range and list(self.range),
            "observed": list(self.observed) if self.observed[0] <= self.observed[1] else None,
            "histogram": self._histogram_dict(),
        }

    def _histogram_dict(self) -> dict | None:
        """Of the float values of all channels: n + 1 edges and n counts."""
        found = self.histogram_on_grid(_REPORT_BINS)
        return found and {"edges": found[0].tolist(), "counts": found[1].sum(axis=0).round().tolist()}

    def histogram_on_grid(self, bins: int) -> tuple[np.ndarray, np.ndarray] | None:
        """(bins + 1 edges that take in the observed values and the range, counts [channels, bins]); None where nothing was compared."""
        if self.histogram is None or not self.histogram.observed:
            return None
        import numpy as np  # here and below: training and converting need torch alone

        low, high = self.observed if self.range is None else (min(self.observed[0], self.range[0]), max(self.observed[1], self.range[1]))
        margin = 0.02 * (high - low) or 1.0
        grid = np.linspace(low - margin, high + margin, bins + 1)
        return grid, np.stack([_on_grid(np.asarray(edges), values.numpy(), grid) for edges, values in histogram_of(self.histogram)])


def channel_axis(value: Tensor, has_conv1d: bool) -> int:
    """Images have channels in dimension 1, and so have three-dimensional values in a model with 1-d convolutions; else the last."""
    return 1 if value.dim() == 4 or (value.dim() == 3 and has_conv1d) else -1


def representable_range(fake_quant) -> tuple[float, float]:
    """The smallest and the largest value that the codes of a per-tensor fake-quant stand for."""
    spec = fake_quant.spec
    ends = torch.tensor([spec.quant_min, spec.quant_max], dtype=spec.dtype)
    low, high = torch.ops.torchquant.dequantize(ends, fake_quant.scale.detach().cpu(), fake_quant.zero_point.detach().cpu()).tolist()
    return low, high


def clipped_mask(value: Tensor, fake_quant) -> Tensor:
    """Where a value's code lies outside [quant_min, quant_max] before it is clamped. It is the straight-through gradient that says so."""
    spec = fake_quant.spec
    passed = torch.ops.torchquant.fake_quantize_backward(
        torch.ones_like(value), value, fake_quant.scale.detach(), fake_quant.zero_point.detach(), axis=spec.axis,
        group_size=spec.group_size, quant_min=spec.quant_min, quant_max=spec.quant_max,
    )  # fmt: skip
    return passed == 0


class Comparison(ShownAsTable):
    """What `torchquant.compare` found.

    ``rows`` has a ComparedLayer per layer in running order, ``remarks`` says what could not be compared.
    """

    def __init__(self, rows: list[ComparedLayer], min_sqnr_db: float, remarks: list[str]):
        self.rows, self.min_sqnr_db, self.remarks = rows, min_sqnr_db, remarks

    @property
    def first_bad(self) -> ComparedLayer | None:
        """The layer to look at first, None if no layer's SQNR is below ``min_sqnr_db``.

        The rule: take the rows up to the first one below ``min_sqnr_db`` (or not finite); of these it is the one where the SQNR falls
        the most below the lowest before it, for the first row below 50 dB, which is what 8 bits can hold. So a sudden loss is found
        where it happens and not where the sum of all losses crosses the line.
        """
        lowest, worst, fall = BEST_SQNR_DB, None, -math.inf
        for row in self.rows:
            sqnr = row.sqnr_db
            if sqnr is None:
                continue
            if lowest - sqnr > fall:
                worst, fall = row, lowest - sqnr
            if sqnr < self.min_sqnr_db:
                return worst
            lowest = min(lowest, sqnr)
        return None

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        judged = [row for row in self.rows if row.sqnr_db is not None]
        if not judged:
            return "No layer could be compared."
        bad = self.first_bad
        if bad is None:
            weakest = min(judged, key=lambda row: row.sqnr_db)
            return f"No layer falls below {self.min_sqnr_db:g} dB; the weakest is {weakest.layer!r} with {weakest.worse[1].sqnr_text}."
        before = [row.sqnr_db for row in judged[: judged.index(bad)]]
        came_from = f", from {_db(min(before))} before it" if before else ""
        why = f"; {bad.clipped_rate:.1%} of its float values lie outside the range" if bad.clipped_rate else ""
        return f"{bad.layer!r} goes wrong first: its SQNR in the {bad.worse[0]} model is {bad.worse[1].sqnr_text}{came_from}{why}."

    def row(self, layer: str) -> ComparedLayer:
        """The row of a layer; ValueError with the nearest names if there is none."""
        found = next((row for row in self.rows if row.layer == layer), None)
        if found is None:
            raise ValueError(no_such_layer("Comparison", layer, [row.layer for row in self.rows]))
        return found

    def to_dict(self) -> dict:
        """Plain values for JSON and reports; an SQNR that is not finite is None: ``exact`` tells the infinite ones, ``nonfinite``
        counts the values that are NaN or infinite, and where there are none the float value is all zero."""
        bad = self.first_bad
        return {
            "min_sqnr_db": self.min_sqnr_db,
            "first_bad": bad and bad.layer,
            "sentence": self.sentence,
            "remarks": self.remarks,
            "rows": [row.to_dict() for row in self.rows],
        }

    def table(self):
        table = new_table(title="Float against quantized, layer by layer", caption=" ".join([self.sentence, *self.remarks]))
        headings = ("layer", "kind", "prepared", "cosine", "max error", "clipped", "saturated", "converted", "saturated")
        for heading in headings:
            table.add_column(heading, overflow="fold", justify="left" if heading in ("layer", "kind") else "right")
        bad = self.first_bad
        for row in self.rows:
            shown = row.prepared if row.prepared.errors.count else row.converted
            errors = shown.errors
            table.add_row(
                row.layer, row.kind, row.prepared.errors.sqnr_text if row.prepared.errors.count else "",
                f"{errors.cosine:.5f}" if errors.count else "", f"{errors.max_abs_error:.3g}" if errors.count else "",
                _percent(row.clipped_rate), _percent(row.prepared.saturation_rate),
                row.converted.errors.sqnr_text if row.converted.errors.count else row.converted_note,
                _percent(row.converted.saturation_rate), style="bold red" if row is bad else None,
            )  # fmt: skip
        return table

    def histogram(self, layer: str) -> dict:
        """A layer's float values as plain numbers: "edges", "counts" (a list per channel, spread over those bins), "range", "observed"."""
        row = self.row(layer)
        found = row.histogram_on_grid(_DETAIL_BINS)
        if found is None:
            raise ValueError(f"Comparison: {row.layer!r} has no histogram, because none of its values was compared")
        edges, counts = found
        return {"layer": row.layer, "edges": edges.tolist(), "counts": counts.tolist(), "range": row.range and list(row.range),
                "observed": list(row.observed)}  # fmt: skip

    def plot(self, layer: str, path: str | os.PathLike) -> None:
        """Draws a layer's float values, all together and channel by channel, with the range of its fake-quant; the ending of ``path``
        chooses the format (png, svg, pdf)."""
        from torchquant.analysis.histograms import draw_histograms  # matplotlib is only loaded where something is drawn

        draw_histograms(self.histogram(layer), path)


def histogram_of(observer: HistogramObserver) -> list[tuple[list[float], Tensor]]:
    """(edges, counts) of every channel."""
    counts = observer.histogram.reshape(-1, observer.spec.bins).cpu()
    ranges = zip(observer.min_val.tolist(), observer.max_val.tolist())
    return [(_C.histogram_edges(low, high, observer.spec.bins), row) for (low, high), row in zip(ranges, counts)]


def _on_grid(edges: np.ndarray, counts: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The counts spread over the bins of another grid, evenly inside each of their own."""
    import numpy as np

    return np.diff(np.interp(grid, edges, np.concatenate([[0.0], np.cumsum(counts)])))


def _db(value: float) -> str:
    return "exact" if value == math.inf else f"{value:.1f} dB"


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.2%}"
