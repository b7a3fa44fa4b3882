"""clipping_report: which activations the quantized range cuts, which channels stretch it, and what to do about them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from torchquant.analysis.comparison import channel_axis, clipped_mask, representable_range
from torchquant.analysis.layer_values import fake_quants_set, run_layers
from torchquant.batches import checked_batches
from torchquant.calibrate import check_calibrated
from torchquant.fake_quantize import FakeQuantize
from torchquant.observers import make_observer
from torchquant.prepare import check_prepared
from torchquant.prepare.example_run import unpack
from torchquant.progress import ProgressBar
from torchquant.qconfig import QConfig, QConfigMapping, QuantSpec, exactly, with_entries
from torchquant.shown_as_table import ShownAsTable, new_table

# A channel whose largest magnitude is this many times the median channel's holds an outlier: with 8 bits it leaves the median
# channel five.
OUTLIER_FACTOR = 8.0
CLIPPED_SHARE = 0.01


@dataclass
class ClippedTensor:
    """One activation fake-quant, over all batches of the report."""

    fake_quant: str  # path in the prepared model
    layers: list[str]  # the quantized layers that read this tensor
    range: tuple[float, float]  # what the codes can represent
    observed: tuple[float, float] = (0.0, 0.0)  # smallest and largest float value
    values: int = 0
    clipped: int = 0
    clipped_per_channel: list[float] = field(default_factory=list)  # share of each channel's values
    absmax_per_channel: list[float] = field(default_factory=list)
    outlier_channels: list[int] = field(default_factory=list)

    @property
    def clipped_rate(self) -> float:
        return self.clipped / self.values if self.values else 0.0

    @property
    def outlier_ratio(self) -> float:
        """The largest channel's magnitude over the median channel's."""
        median = median_magnitude(self.absmax_per_channel)
        return max(self.absmax_per_channel) / median if median else 1.0

    @property
    def advice(self) -> str:
        """What to do, empty where nothing is wrong."""
        readers = ", ".join(self.layers) or "its readers"
        if self.outlier_channels:
            few = len(self.outlier_channels) <= max(1, len(self.absmax_per_channel) // 10)
            remedy = f"{'split them with split_outlier_channels' if few else 'equalize the channels'}, or keep {readers} float"
            shown = ", ".join(map(str, self.outlier_channels[:5])) + (", ..." if len(self.outlier_channels) > 5 else "")
            return f"channels {shown} reach {self.outlier_ratio:.0f} times the median channel's magnitude: {remedy}"
        if self.clipped_rate > CLIPPED_SHARE:
            share = f"{self.clipped_rate:.1%} of the values are cut"
            return f"{share}: calibrate on data like these, or choose the observer min_max for {readers}"
        return ""

    def to_dict(self) -> dict:
        return {
            "fake_quant": self.fake_quant,
            "layers": self.layers,
            "range": list(self.range),
            "observed": list(self.observed),
            "clipped_rate": self.clipped_rate,
            "clipped_per_channel": self.clipped_per_channel,
            "absmax_per_channel": self.absmax_per_channel,
            "outlier_channels": self.outlier_channels,
            "outlier_ratio": self.outlier_ratio,
            "advice": self.advice,
        }


class ClippingReport(ShownAsTable):
    """What `clipping_report` found: ``rows`` has a ClippedTensor per activation fake-quant, in running order."""

    def __init__(self, rows: list[ClippedTensor]):
        self.rows = rows

    @property
    def flagged(self) -> list[ClippedTensor]:
        """The rows that have an advice."""
        return [row for row in self.rows if row.advice]

    def keep_float(self, qconfig: QConfig | QConfigMapping) -> QConfigMapping:
        """A mapping that is `qconfig`, but keeps float the layers that read a tensor with outlier channels."""
        layers = dict.fromkeys(layer for row in self.rows if row.outlier_channels for layer in row.layers)
        return with_entries(qconfig, {exactly(layer): None for layer in layers})

    def to_dict(self) -> dict:
        """Plain values for JSON and reports."""
        return {"rows": [row.to_dict() for row in self.rows]}

    def table(self):
        table = new_table(title="Clipped activations")
        for heading in ("tensor", "read by", "range", "observed", "clipped", "worst channel", "outliers", "advice"):
            table.add_column(heading, overflow="fold", justify="right" if heading in ("clipped", "worst channel", "outliers") else "left")
        for row in self.rows:
            table.add_row(
                row.fake_quant.removeprefix("activation_fake_quants."), ", ".join(row.layers),
                "{:.3g} .. {:.3g}".format(*row.range), "{:.3g} .. {:.3g}".format(*row.observed), f"{row.clipped_rate:.2%}",
                f"{max(row.clipped_per_channel, default=0):.2%}", str(len(row.outlier_channels)), row.advice,
                style="bold red" if row.advice else None,
            )  # fmt: skip
        return table


def clipping_report(prepared: nn.Module, batches, *, outlier_factor: float = OUTLIER_FACTOR) -> ClippingReport:
    """Compares the ranges that a calibrated model uses with the float values that flow, per tensor and channel.

    The model computes in float, so a value that is cut early does not hide one behind it. Channels are dimension 1 of images (and of
    three-dimensional tensors in a model with 1-d convolutions), else the last dimension. The model is not changed.

    Args:
        prepared: what `prepare` returned, calibrated.
        batches: an iterable of tensors, tuples of arguments or dicts of keyword arguments, as for `calibrate`.
        outlier_factor: a channel is an outlier where its largest magnitude exceeds this many times the median channel's.

    Raises:
        TypeError, ValueError: for no prepared model, one that is not calibrated, empty batches or an outlier_factor below 1.
        RuntimeError: for a batch on which the model does not run.
    """
    check_prepared("clipping_report", prepared)
    if not outlier_factor >= 1:
        raise ValueError(f"clipping_report: outlier_factor must be at least 1, got {outlier_factor!r}")
    check_calibrated(prepared, "clipping_report")
    batches, total = checked_batches(batches, "clipping_report")
    has_conv1d = any(isinstance(module, nn.Conv1d) for module in prepared.modules())
    tensors: dict[str, _Tensor] = {}
    with fake_quants_set(prepared, on=False), torch.no_grad(), ProgressBar("looking for clipped values", total) as bar:
        for index, batch in enumerate(batches):
            args, kwargs = unpack(batch, f"clipping_report: batch {index}")
            try:
                values = run_layers(prepared, args, kwargs)
            except Exception as error:  # the model's own limit, whatever it raises
                raise RuntimeError(f"clipping_report: the model does not run on batch {index}: {error}") from error
            for key, value in values.places.items():
                path = key.split("#")[0]
                tensors.setdefault(path, _Tensor(values.fake_quants[key], has_conv1d)).add(value)
            bar.advance()
    return ClippingReport([tensor.row(path, values.readers.get(path, []), outlier_factor) for path, tensor in tensors.items()])


def median_magnitude(absmax_per_channel: list[float]) -> float:
    """Of the channels that are not dead, 0 if all are."""
    alive = [absmax for absmax in absmax_per_channel if absmax > 0]
    return statistics.median(alive) if alive else 0.0


class _Tensor:
    """The running counts of one fake-quant."""

    def __init__(self, fake_quant: FakeQuantize, has_conv1d: bool):
        self.fake_quant, self.has_conv1d = fake_quant, has_conv1d
        self.all_values = make_observer(QuantSpec.activation(observer="min_max"))
        self.channels: dict[tuple, _Channels] = {}  # by axis and number: the tensors of a concatenation have different ones

    def add(self, value: Tensor) -> None:
        self.all_values.to(value.device)(value)
        axis = channel_axis(value, self.has_conv1d)
        channels = self.channels.setdefault((axis, value.size(axis)), _Channels(axis, value.device))
        channels.observer(value)
        clipped = clipped_mask(value, self.fake_quant).movedim(axis, 0).flatten(1).sum(1)
        channels.clipped = clipped if channels.clipped is None else channels.clipped + clipped
        channels.values += value.numel()

    def row(self, path: str, readers: list[str], outlier_factor: float) -> ClippedTensor:
        row = ClippedTensor(path, readers, representable_range(self.fake_quant))
        row.observed = self.all_values.min_val.item(), self.all_values.max_val.item()
        for (_, count), channels in self.channels.items():
            row.values += channels.values
            row.clipped += int(channels.clipped.sum())
            row.clipped_per_channel += (channels.clipped * count / channels.values).tolist()
            row.absmax_per_channel += torch.maximum(-channels.observer.min_val, channels.observer.max_val).tolist()
        limit = outlier_factor * median_magnitude(row.absmax_per_channel)
        row.outlier_channels = [channel for channel, absmax in enumerate(row.absmax_per_channel) if absmax > limit]
        return row


class _Channels:
    def __init__(self, axis: int, device):
        self.observer = make_observer(QuantSpec.activation(observer="min_max", axis=axis)).to(device)
        self.clipped, self.values = None, 0
