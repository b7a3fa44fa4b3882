"""calibration_curve: how many calibration batches are enough? The ranges of all activations as they settle, batch by batch."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass

from torch import nn

from torchquant.analysis.comparison import representable_range
from torchquant.batches import run_batches, samples_in
from torchquant.calibrate import static_fake_quants
from torchquant.fake_quantize import FakeQuantize
from torchquant.files import save_figure
from torchquant.prepare import check_prepared


@dataclass
class CalibrationCurve:
    """What `calibration_curve` found.

    ``movement[name][n]`` is how far, after n + 1 batches, the range of a fake-quant was from where it ended: the larger distance of
    its two ends, as a fraction of the width of the final range. ``samples[n]`` is the number of samples in n + 1 batches.
    """

    movement: dict[str, list[float]]
    samples: list[int]
    tolerance: float

    @property
    def worst(self) -> list[float]:
        """After each batch, the movement that is still to come in the range that moves most."""
        return [max(values) for values in zip(*self.movement.values())]

    @property
    def batches_needed(self) -> int:
        """The number of batches after which no range moved by more than `tolerance`."""
        return max((n + 1 for n, value in enumerate(self.worst, start=1) if value > self.tolerance), default=1)

    @property
    def sentence(self) -> str:
        """The advice in words."""
        needed, given = self.batches_needed, len(self.samples)
        if given == 1:
            return "One batch shows no convergence; give more batches."
        if needed == given:
            layer = max(self.movement, key=lambda name: self.movement[name][-2])
            return (
                f"The ranges still moved by {self.worst[-2]:.1%} with the last of {given} batches ({layer} most), which is more than "
                f"{self.tolerance:.1%}: give more batches."
            )
        return f"After {needed} batches ({self.samples[needed - 1]} samples) no range moved by more than {self.tolerance:.1%}."

    def to_dict(self) -> dict:
        """Plain values for JSON and reports."""
        return {
            "tolerance": self.tolerance,
            "batches_needed": self.batches_needed,
            "sentence": self.sentence,
            "samples": self.samples,
            "worst": self.worst,
            "movement": self.movement,
        }

    def plot(self, path: str | os.PathLike) -> None:
        """Draws a line per range, the worst one in bold; the ending of `path` chooses the format (png, svg, pdf)."""
        from matplotlib.figure import Figure  # only loaded where something is drawn

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for values in self.movement.values():
            axes.plot(self.samples, values, color="#4c78a8", alpha=0.3, linewidth=1)
        axes.plot(self.samples, self.worst, color="#e45756", linewidth=2, label="range that moves most")
        axes.axhline(self.tolerance, color="grey", linestyle="--", linewidth=1, label=f"{self.tolerance:.1%}")
        axes.set_yscale("symlog", linthresh=self.tolerance / 10)
        axes.set_xlabel("samples")
        axes.set_ylabel("distance from the final range / its width")
        axes.set_title(self.sentence, fontsize=9)
        axes.legend()
        save_figure(figure, path)

    def __str__(self) -> str:
        return self.sentence


def calibration_curve(prepared: nn.Module, batches, *, tolerance: float = 0.01) -> CalibrationCurve:
    """Calibrates a copy of a prepared model and notes after every batch where each activation's range is.

    The ranges are those that the observers of the QConfig would choose at that point. What earlier calibration saw is left out. The
    model given is not changed, and calibrating it is still to be done, with as many batches as the curve says.

    Args:
        prepared: what `torchquant.prepare` returned.
        batches: an iterable of tensors, tuples of arguments or dicts of keyword arguments, as for `calibrate`; in random order, for a
            sorted data set shows convergence where there is none.
        tolerance: the movement that counts as settled, as a fraction of a range's width.

    Raises:
        TypeError, ValueError: for no prepared model, one without activation ranges, empty batches, or a tolerance that is not positive.
    """
    check_prepared("calibration_curve", prepared)
    if not 0 < tolerance < 1:
        raise ValueError(f"calibration_curve: tolerance must be between 0 and 1, a fraction of a range's width; got {tolerance!r}")
    if not static_fake_quants(prepared):
        raise ValueError("calibration_curve: no activation of this model has a range to calibrate (dynamic or weight-only QConfig)")
    prepared = copy.deepcopy(prepared)
    fake_quants = static_fake_quants(prepared)
    for module in prepared.modules():
        if isinstance(module, FakeQuantize):
            module.observer_enabled = module.fake_quant_enabled = False
    for fake_quant in fake_quants.values():
        fake_quant.observer_enabled = True
        fake_quant.observer.reset()
    ranges, samples = {name: [] for name in fake_quants}, []
    for batch in run_batches(prepared, batches, "calibration_curve", "watching the ranges"):
        samples.append(samples_in(batch) + (samples[-1] if samples else 0))
        for name, fake_quant in fake_quants.items():
            fake_quant.update_qparams()
            ranges[name].append(representable_range(fake_quant))
    broken = [name for name, fake_quant in fake_quants.items() if fake_quant.nonfinite_count]
    if broken:
        raise ValueError(f"calibration_curve: {', '.join(broken)} met infinite or NaN values; check the batches and the float model")
    unseen = [name for name, fake_quant in fake_quants.items() if not fake_quant.observed]
    if unseen:
        raise ValueError(f"calibration_curve: no batch reached {', '.join(unseen)}; give batches that run every layer")
    return CalibrationCurve({name: _movement(values) for name, values in ranges.items()}, samples, tolerance)


def _movement(ranges: list[tuple[float, float]]) -> list[float]:
    low, high = ranges[-1]
    width = high - low
    return [max(abs(a - low), abs(b - high)) / width for a, b in ranges]
