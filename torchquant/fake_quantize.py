"""FakeQuantize: the module that stands wherever a tensor will become integers, and rounds it to what they can hold."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from torchquant.observers import MovingAverageMinMaxObserver, QuantizationState, make_observer, state_shape
from torchquant.qconfig import QuantSpec

_ops = torch.ops.torchquant

# How far a fake-quant has come.
_NOTHING_SEEN, _SEEN, _HAS_QPARAMS = range(3)

# 2^-100, below which no scale may fall; numerics/affine.h
_MIN_SCALE = 2.0**-100


class FakeQuantize(QuantizationState):
    """Observes a tensor and fake-quantizes it, either or both.

    `scale` and `zero_point` are fp32 buffers, parameters where the spec is learnable. Modules start with both on, the state
    for training: every step in training mode moves the range and uses it. In eval mode a range once seen stays as it is.
    With the observer alone (calibration) the tensor passes through unchanged, in either mode.

    A learnable spec takes its first scale from calibration, or else from the first batch, and then learns it: LSQ (Esser
    et al., ICLR 2020), LSQ+ (Bhalgat et al., CVPR workshops 2020) for zero points. In distributed training, calibrate
    first, so that every process starts from the same scale.

    A dynamic spec has no state: each row gets its own scale in each forward.
    """

    __jit_unused_properties__ = ["observed", "nonfinite_count"]  # torch.jit.trace would compile them

    def __init__(self, spec: QuantSpec, name: str = ""):
        super().__init__()
        self.spec = spec
        self.name = name  # where it stands in the model, for error messages
        self.observer_enabled = True
        self.fake_quant_enabled = True
        self._progress = _NOTHING_SEEN
        if spec.dynamic:
            self.observer = None
            return
        self.observer = make_observer(spec)
        count = self.observer.min_val.numel()
        self._register("scale", torch.ones(count), spec.learnable)
        self._register("zero_point", torch.zeros(count), spec.learnable_zero_point)
        averages = isinstance(self.observer, MovingAverageMinMaxObserver)
        self._fused = averages and spec.group_size is None and not spec.learnable

    def _register(self, name: str, value: Tensor, learnable: bool) -> None:
        if learnable:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    # ---- state

    def enable_observer(self, enabled: bool = True) -> None:
        self.observer_enabled = enabled
        if not enabled:
            self._finish_calibration()

    def enable_fake_quant(self, enabled: bool = True) -> None:
        self.fake_quant_enabled = enabled
        if enabled:
            self._finish_calibration()

    def _finish_calibration(self) -> None:
        self._notice_copied_state()
        if self._progress == _SEEN:
            self.update_qparams()

    def _notice_copied_state(self) -> None:
        """Buffers that were copied from another model (torch.optim.swa_utils.AveragedModel) bring no flags with them. Reads
        the device, as long as nothing was seen."""
        if self._progress == _NOTHING_SEEN and not self.spec.dynamic and self.observed:
            learned = self.spec.learnable and self.fake_quant_enabled
            self._progress = _HAS_QPARAMS if learned else _SEEN

    @property
    def observed(self) -> bool:
        """Whether every channel saw a finite value; always true where nothing is to be seen. Reads the device."""
        return self.observer is None or self.observer.observed

    @property
    def nonfinite_count(self) -> int:
        """How many NaN and infinite values were observed. Reads the device."""
        return 0 if self.observer is None else int(self.observer.nonfinite_count)

    @torch.no_grad()
    def update_qparams(self) -> None:
        """Scale and zero point from what the observer has seen."""
        for name, value in zip(("scale", "zero_point"), self.observer.calculate_qparams()):
            self._ensure_allocated(name, value.shape, value.device)
            getattr(self, name).data.copy_(value)
        self._advance(_HAS_QPARAMS)

    @torch.no_grad()
    def follow(self, x: Tensor) -> None:
        """Scale and zero point for `x` alone, if its range is not the one observed: qparams set by hand stay."""
        observer = make_observer(self.spec).to(x.device)
        observer(x)
        if not all(torch.equal(getattr(observer, name), getattr(self.observer, name)) for name in ("min_val", "max_val")):
            self.observer = observer
            self.update_qparams()

    @torch.no_grad()
    def keep_qparams_for(self, x: Tensor) -> None:
        """Makes the range of `x` the one observed and leaves scale and zero point as they are, so that `follow` does too: for
        values that were chosen to fit these qparams."""
        observer = make_observer(self.spec).to(x.device)
        observer(x)
        self.observer = observer

    def get_extra_state(self) -> Tensor:
        """The flags, as a tensor because tools take every value of a state_dict for one."""
        return torch.tensor([self.observer_enabled, self.fake_quant_enabled, self._progress], dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        observer_enabled, fake_quant_enabled, self._progress = state.tolist()
        self.observer_enabled, self.fake_quant_enabled = bool(observer_enabled), bool(fake_quant_enabled)

    def train(self, mode: bool = True):
        """Also brings a learned scale back into range after the last optimizer step before an evaluation."""
        self._clamp_learned_scale()
        return super().train(mode)

    def extra_repr(self) -> str:
        flags = f"observer={'on' if self.observer_enabled else 'off'}, fake_quant={'on' if self.fake_quant_enabled else 'off'}"
        return f"{self.spec}, {flags}"

    # ---- forward

    def forward(self, x: Tensor) -> Tensor:
        if self.spec.dynamic:
            return self._fake_quantize_rows(x) if self.fake_quant_enabled else x
        if self._progress == _NOTHING_SEEN and self.fake_quant_enabled and not torch.compiler.is_compiling():
            self._finish_calibration()
        if self._observes_now():
            if self.fake_quant_enabled and self._fused:
                return self._observe_and_fake_quantize(x)
            self._observe(x)
        if not self.fake_quant_enabled:
            return x
        if self._progress == _NOTHING_SEEN:
            raise RuntimeError(
                f"fake_quantize: {self.name or 'this FakeQuantize'} has no scale, because its observer was off and saw "
                "nothing (empty calibration): run calibrate, or enable_observer, before fake-quantizing"
            )
        return self._fake_quantize(x)

    def _observes_now(self) -> bool:
        # Evaluating a model in training must not move its ranges, as it does not move those of a batch norm.
        ranges_fixed = self.fake_quant_enabled and not self.training and self._progress == _HAS_QPARAMS
        return self.observer_enabled and not ranges_fixed

    def _observe(self, x: Tensor) -> None:
        self.observer(x)
        if not self.fake_quant_enabled:
            self._advance(_SEEN)
            return
        self.update_qparams()
        if self.spec.learnable:
            self.observer_enabled = False  # from here on training moves the scale

    def _advance(self, progress: int) -> None:
        if self._progress != progress:  # writing it in every step would recompile a compiled model
            self._progress = progress

    def _observe_and_fake_quantize(self, x: Tensor) -> Tensor:
        observer, spec = self.observer, self.spec
        if self.scale.numel() == 0:
            shape = state_shape(spec, x)
            observer._allocate(shape, x.device)
            self._ensure_allocated("scale", shape, x.device)
            self._ensure_allocated("zero_point", shape, x.device)
        self._advance(_HAS_QPARAMS)
        return _ops.fused_observe_fake_quantize(
            x, observer.min_val, observer.max_val, observer.nonfinite_count, self.scale, self.zero_point,
            averaging_constant=spec.averaging_constant, axis=spec.axis, symmetric=spec.symmetric,
            quant_min=spec.quant_min, quant_max=spec.quant_max,
        )  # fmt: skip

    def _fake_quantize(self, x: Tensor) -> Tensor:
        spec = self.spec
        grad_factor = 1.0
        if spec.learnable and torch.is_grad_enabled() and not torch.jit.is_tracing():
            if self.training:  # what an optimizer step left; train() sees to the last one
                self._clamp_learned_scale()
            grad_factor = 1.0 / math.sqrt(x.numel() / self.scale.numel() * spec.quant_max)
        return _ops.fake_quantize(
            x, self.scale, self.zero_point, axis=spec.axis, group_size=spec.group_size,
            quant_min=spec.quant_min, quant_max=spec.quant_max, grad_factor=grad_factor,
        )  # fmt: skip

    def _fake_quantize_rows(self, x: Tensor) -> Tensor:
        spec = self.spec
        codes = {"quant_min": spec.quant_min, "quant_max": spec.quant_max}
        rows = {"axis": -1, "group_size": spec.group_size or _length_of_rows(x)}
        scale, zero_point = _ops.choose_qparams(x, **rows, symmetric=spec.symmetric, **codes)
        return _ops.fake_quantize(x, scale, zero_point, **rows, **codes)

    def _clamp_learned_scale(self) -> None:
        if self.spec.learnable:
            self.scale.data.clamp_(min=_MIN_SCALE)  # .data: a backward that is still to come need not know

    def _ensure_allocated(self, name: str, shape, device) -> None:
        if getattr(self, name).numel() == 0:
            getattr(self, name).data = torch.ones(shape, device=device)


def _length_of_rows(x: Tensor) -> int:
    """A constant in a trace too: the layer behind has a fixed number of input features."""
    if not torch.jit.is_tracing():
        return x.size(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return int(x.size(-1))
