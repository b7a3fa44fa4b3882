"""Observers: modules that watch a tensor and choose its scale and zero point.

State lies in persistent buffers on the device of the model, and an observation reads nothing back from it. NaN and
infinite values are counted and otherwise ignored. Observers of the same kind and spec merge (`a.merge(b)`), as after
calibrating on several machines.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchquant.qconfig import QuantSpec

_ops = torch.ops.torchquant


class QuantizationState(nn.Module):
    """A module whose buffers are the state of quantization: they keep their dtype when the model changes its own, take
    their shapes from the checkpoint that is loaded, and may all be missing from it, as from a float model's."""

    def _apply(self, fn, recurse=True):
        def move(tensor):
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        if not any(key.startswith(prefix) for key in state_dict):
            return
        for name, own in (*self._buffers.items(), *self._parameters.items()):
            saved = state_dict.get(prefix + name)
            if saved is not None and own.numel() == 0:  # one value per channel, of which none was seen yet
                own.data = own.data.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def state_shape(spec: QuantSpec, x: Tensor) -> tuple[int, ...]:
    """Shape of a scale for x: one value, one per channel, or one per group."""
    if spec.axis is None:
        return (1,)
    if not -x.dim() <= spec.axis < x.dim():
        return (0,)  # the op refuses the axis in its own words
    if spec.group_size is None:
        return (x.size(spec.axis),)
    shape = list(x.shape)
    shape[spec.axis] //= spec.group_size
    return tuple(shape)


class Observer(QuantizationState):
    """Base of the observers: the range of the finite values seen, [+inf, -inf] before any."""

    __jit_unused_properties__ = ["observed"]  # torch.jit.trace would compile it

    def __init__(self, spec: QuantSpec):
        super().__init__()
        self.spec = spec
        shape = 1 if spec.axis is None else 0  # the first tensor seen tells how many channels there are
        self.register_buffer("min_val", torch.full((shape,), torch.inf))
        self.register_buffer("max_val", torch.full((shape,), -torch.inf))
        self.register_buffer("nonfinite_count", torch.zeros(1, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Observes x and returns it."""
        if self.min_val.numel() == 0:
            self._allocate(state_shape(self.spec, x), x.device)
        self._observe(x)
        return x

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, error_msgs):
        saved = {key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)}
        if saved and saved != set(self._buffers) and strict:
            problem = (
                "the saved observers are of another kind: prepare and prepare_qat choose different ones, unless the QConfig "
                'names one (int8_static(observer="moving_average")); or load with strict=False and calibrate'
            )
            if problem not in error_msgs:
                error_msgs.append(problem)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, error_msgs)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """(scale, zero_point); scale 1 where nothing was seen."""
        return self._finish_qparams(*self._choose_qparams())

    def qparams_of_range(self, min_val: Tensor, max_val: Tensor) -> tuple[Tensor, Tensor]:
        """(scale, zero_point) of these ranges, any number of them, by the rule of this observer's spec."""
        return self._finish_qparams(*_ops.qparams_from_min_max(min_val, max_val, **self._codes()))

    def _choose_qparams(self) -> tuple[Tensor, Tensor]:
        return _ops.qparams_from_min_max(self.min_val, self.max_val, **self._codes())

    def _finish_qparams(self, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
        return _ops.power_of_two_qparams(scale, zero_point, **self._codes()) if self.spec.power_of_two else (scale, zero_point)

    def merge(self, other: Observer) -> None:
        """Takes in what another observer of the same kind saw."""
        if type(other) is not type(self) or other.spec != self.spec:
            raise ValueError(f"{type(self).__name__}.merge: other must be of the same kind and spec, got {other!r}")
        if other.min_val.numel() == 0:
            return
        if self.min_val.numel() == 0:
            self._allocate(other.min_val.shape, self.min_val.device)
        self._merge(*(getattr(other, name).to(self.min_val.device) for name in self._buffers if name != "nonfinite_count"))
        self.nonfinite_count += other.nonfinite_count.to(self.nonfinite_count.device)

    def reset(self) -> None:
        """Forgets everything."""
        self._allocate(self.min_val.shape, self.min_val.device)
        self.nonfinite_count.zero_()

    @property
    def observed(self) -> bool:
        """Whether every channel saw a finite value. Reads the state back from its device."""
        return self.min_val.numel() > 0 and bool((self.min_val <= self.max_val).all())

    def extra_repr(self) -> str:
        return f"{self.spec}"

    def _codes(self) -> dict:
        return {name: getattr(self.spec, name) for name in ("symmetric", "quant_min", "quant_max")}

    def _granularity(self) -> dict:
        return {"axis": self.spec.axis, "group_size": self.spec.group_size}

    def _allocate(self, shape, device) -> None:
        self.min_val = torch.full(shape, torch.inf, device=device)
        self.max_val = torch.full(shape, -torch.inf, device=device)

    def _observe(self, x: Tensor) -> None:
        raise NotImplementedError

    def _merge(self, min_val: Tensor, max_val: Tensor) -> None:
        raise NotImplementedError


class MinMaxObserver(Observer):
    """The smallest and largest value ever seen. Merging is exact."""

    def _observe(self, x):
        _ops.observe_min_max(x, self.min_val, self.max_val, self.nonfinite_count, **self._granularity())

    def _merge(self, min_val, max_val):
        torch.minimum(self.min_val, min_val, out=self.min_val)
        torch.maximum(self.max_val, max_val, out=self.max_val)


class MovingAverageMinMaxObserver(Observer):
    """Exponential moving average of each batch's smallest and largest value, as in Jacob et al., "Quantization and
    training of neural networks for efficient integer-arithmetic-only inference" (CVPR 2018), section 3.1.

    `spec.averaging_constant` is the weight of the newest batch; with 1 only that batch counts. Merging gives every merged
    average the same weight, in any order up to fp32 rounding.
    """

    def __init__(self, spec):
        super().__init__(spec)
        self.register_buffer("merged", torch.zeros(self.min_val.shape, dtype=torch.int64))

    def _observe(self, x):
        constant = self.spec.averaging_constant
        _ops.observe_moving_average(
            x, self.min_val, self.max_val, self.nonfinite_count, **self._granularity(), averaging_constant=constant
        )

    def _merge(self, min_val, max_val, merged):
        _ops.merge_moving_average(self.min_val, self.max_val, self.merged, min_val, max_val, merged)

    def _allocate(self, shape, device):
        super()._allocate(shape, device)
        self.merged = torch.zeros(shape, dtype=torch.int64, device=device)


class HistogramObserver(Observer):
    """Base of the observers that clip: counts in `spec.bins` bins per tensor or channel, in constant memory.

    The bin width is a power of two and zero is a bin edge, so a range that grows only joins neighbouring bins: the counts
    are exactly those of one pass over all the data, whatever the order of batches and merges.
    """

    def __init__(self, spec):
        super().__init__(spec)
        self.register_buffer("histogram", torch.zeros(self._histogram_shape(self.min_val.shape), dtype=torch.int64))

    def _observe(self, x):
        _ops.observe_histogram(
            x, self.histogram, self.min_val, self.max_val, self.nonfinite_count, axis=self.spec.axis
        )

    def _merge(self, min_val, max_val, histogram):
        _ops.merge_histogram(self.histogram, self.min_val, self.max_val, histogram, min_val, max_val)

    def _allocate(self, shape, device):
        super()._allocate(shape, device)
        self.histogram = torch.zeros(self._histogram_shape(shape), dtype=torch.int64, device=device)

    def _histogram_shape(self, shape):
        return (self.spec.bins,) if self.spec.axis is None else (*shape, self.spec.bins)

    def _histogram_state(self):
        return self.histogram, self.min_val, self.max_val


class PercentileObserver(HistogramObserver):
    """Cuts (100 - `spec.percentile`) % of the values off each tail; symmetric specs cut the largest magnitudes, as in
    McKinstry et al., "Discovering low-precision networks close to full-precision networks for efficient embedded
    inference" (2018)."""

    def _choose_qparams(self):
        return _ops.qparams_from_histogram_percentile(
            *self._histogram_state(), percentile=self.spec.percentile, **self._codes()
        )


class MSEObserver(HistogramObserver):
    """The range with the least mean squared quantization error, as in Choukroun et al., "Low-bit quantization of neural
    networks for efficient inference" (ICCV workshops 2019), each end of an affine range searched for itself."""

    def _choose_qparams(self):
        return _ops.qparams_from_histogram_mse(*self._histogram_state(), **self._codes())


class EntropyObserver(HistogramObserver):
    """The range whose quantized values' distribution has the least Kullback-Leibler divergence from the values' own:
    S. Migacz, "8-bit inference with TensorRT" (NVIDIA GTC 2017)."""

    def _choose_qparams(self):
        return _ops.qparams_from_histogram_entropy(*self._histogram_state(), **self._codes())


_CLASSES = {
    "auto": MovingAverageMinMaxObserver,  # of a spec that no prepare has decided
    "min_max": MinMaxObserver,
    "moving_average": MovingAverageMinMaxObserver,
    "percentile": PercentileObserver,
    "mse": MSEObserver,
    "entropy": EntropyObserver,
}


def make_observer(spec: QuantSpec) -> Observer:
    return _CLASSES[spec.observer](spec)
