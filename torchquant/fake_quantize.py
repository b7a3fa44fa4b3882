"""FakeQuantize: the module that stands wherever a tensor will become integers, and rounds it to what they can hold."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from torchquant.not_compiled import not_compiled
from torchquant.observers import HistogramObserver, MovingAverageMinMaxObserver, QuantizationState, make_observer, state_shape
from torchquant.process_group import check_even_inputs, merge_observers, merge_ranges, training_group
from torchquant.qconfig import QuantSpec

_ops = torch.ops.torchquant

# How far a fake-quant has come.
_NOTHING_SEEN, _SEEN, _HAS_QPARAMS = range(3)

# 2^-100, below which no scale may fall; numerics/affine.h
_MIN_SCALE = 2.0**-100
_MIN_CLIP = 255 * _MIN_SCALE


def _recomputing() -> bool:
    """Whether a backward is running: torch.utils.checkpoint then repeats a forward that was observed already."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class FakeQuantize(QuantizationState):
    """Observes a tensor and fake-quantizes it, either or both.

    `scale` and `zero_point` are fp32 buffers, parameters where the spec is learnable. Modules start with both on, the state
    for training: every step in training mode moves the range and uses it. In eval mode a range once seen stays as it is.
    With the observer alone (calibration) the tensor passes through unchanged, in either mode.

    A learnable spec takes its first scale from calibration, or else from the first batch, and then learns it: LSQ (Esser
    et al., ICLR 2020), LSQ+ (Bhalgat et al., CVPR workshops 2020) for zero points. With `learnable_clip` the parameter is
    `clip`, the largest magnitude of the range, and the scale follows it: PACT (Choi et al., 2018).

    In a DistributedDataParallel, and in a model that `fully_shard` shards, the range of an activation is that of all processes:
    from the second batch on, a step quantizes with the range of the steps before it, and the prepared model merges the ranges
    after each forward. The first batch that reaches it is merged at once, and so is the one from which a range is learned. (A
    weight is the same in every process; `of_parameter` says that this is one.)

    When torch.utils.checkpoint repeats a forward, nothing is observed again, and the repeat takes the qparams of this
    module's newest forward: those of the one that is repeated, unless the module ran again since.

    A dynamic spec has no state: each row gets its own scale in each forward. So does each output channel of an fp8 weight.
    """

    __jit_unused_properties__ = ["observed", "nonfinite_count", "has_learned_range"]  # torch.jit.trace would compile them
    group = None  # the processes that train a sharded model: prepare/sharding.py

    def __init__(self, spec: QuantSpec, name: str = "", *, of_parameter: bool = False):
        super().__init__()
        self.spec = spec
        self.name = name  # where it stands in the model, for error messages
        self.of_parameter = of_parameter
        self.observer_enabled = True
        self.fake_quant_enabled = True
        self._progress = _NOTHING_SEEN
        self._used = None  # scale and zero point of the newest forward, where they changed since
        if spec.dynamic:
            self.observer = None
            return
        self.observer = make_observer(spec)
        count = self.observer.min_val.numel()
        self._register("scale", torch.ones(count), spec.learnable)
        self._register("zero_point", torch.zeros(count), spec.learnable_zero_point)
        if spec.learnable_clip:
            self.register_parameter("clip", nn.Parameter(torch.ones(count)))
        averages = isinstance(self.observer, MovingAverageMinMaxObserver)
        plain = spec.rounding == "nearest" and not (spec.learns or spec.power_of_two)
        self._fused = averages and spec.group_size is None and plain

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

    @not_compiled  # it reads the device
    def _finish_calibration(self) -> None:
        self._notice_copied_state()
        if self._progress == _SEEN:
            self.update_qparams()

    def _notice_copied_state(self) -> None:
        """Buffers that were copied from another model (torch.optim.swa_utils.AveragedModel) bring no flags with them. Reads
        the device, as long as nothing was seen."""
        if self._progress == _NOTHING_SEEN and not self.spec.dynamic and self.observed:
            learned = self.spec.learns and self.fake_quant_enabled
            self._progress = _HAS_QPARAMS if learned else _SEEN

    @property
    def observed(self) -> bool:
        """Whether every channel saw a finite value; always true where nothing is to be seen. Reads the device."""
        return self.observer is None or self.observer.observed

    @property
    def has_learned_range(self) -> bool:
        """Whether gradients move the range from here on, which observing would set back."""
        return self.spec.learns and self._progress == _HAS_QPARAMS

    @property
    def nonfinite_count(self) -> int:
        """How many NaN and infinite values were observed. Reads the device."""
        return 0 if self.observer is None else int(self.observer.nonfinite_count)

    @torch.no_grad()
    def update_qparams(self) -> None:
        """Scale and zero point from what the observer has seen. A dynamic spec has none."""
        if self.observer is None:
            return
        for name, value in zip(("scale", "zero_point"), self.observer.calculate_qparams()):
            self._ensure_allocated(name, value.shape, value.device)
            getattr(self, name).data.copy_(value)
        if self.spec.learnable_clip:
            self.clip.data.copy_(_ops.pact_clip(self.scale, self.zero_point, **self._codes()))
        self._advance(_HAS_QPARAMS)

    @torch.no_grad()
    def follow(self, x: Tensor) -> None:
        """Scale and zero point for `x` alone, if its range is not the one observed: qparams set by hand stay."""
        if self.observer is None:
            return
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

    def _load_from_state_dict(self, *arguments):
        super()._load_from_state_dict(*arguments)
        self._follow_optimizer()

    def train(self, mode: bool = True):
        """Also takes over what the last optimizer step before an evaluation left."""
        self._follow_optimizer()
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
            group = None if self.of_parameter else self.group or training_group()
            if self._takes_one_pass(group):
                return self._fake_quantize_and_observe(x, group)
            if self.fake_quant_enabled and self._fused and group is None:
                return self._observe_and_fake_quantize(x)
            self._observe(x, group)
        if not self.fake_quant_enabled:
            return x
        if self._progress == _NOTHING_SEEN:
            raise RuntimeError(
                f"fake_quantize: {self.name or 'this FakeQuantize'} has no scale, because its observer was off and saw "
                "nothing (empty calibration): run calibrate, or enable_observer, before fake-quantizing"
            )
        return self._fake_quantize(x)

    def _observes_now(self) -> bool:
        if not self.observer_enabled or _recomputing():
            return False
        # Evaluating a model in training must not move its ranges, as it does not move those of a batch norm.
        return self.training or not self.fake_quant_enabled or self._progress != _HAS_QPARAMS

    def _observe(self, x: Tensor, group) -> None:
        if group is not None:
            self._check_merges()
        self.observer(x)
        if not self.fake_quant_enabled:
            self._advance(_SEEN)
            return
        if group is not None:
            if self._progress == _HAS_QPARAMS and not self.spec.learns:
                return  # the prepared model merges what was seen and updates the scale: merge_after_forward
            self._merge_first_batch(group)
        self.update_qparams()
        if self.spec.learns:
            self.observer_enabled = False  # from here on training moves the scale

    def _takes_one_pass(self, group) -> bool:
        """Whether this step quantizes with the range of the steps before it, by the op that observes too."""
        after_the_first = self._fused and self.spec.axis is None and self.fake_quant_enabled and self._progress == _HAS_QPARAMS
        return after_the_first and (group is not None or (self.spec.delayed and self.training))

    def _check_merges(self) -> None:
        starts_learning = self.spec.learns and self.fake_quant_enabled
        if isinstance(self.observer, HistogramObserver) and not starts_learning:
            raise RuntimeError(
                f"fake_quantize: {self.name or 'this FakeQuantize'}: processes in training merge ranges, not histograms, and its "
                f'observer is {self.spec.observer!r}; give the QConfig observer="moving_average", or calibrate before training'
            )

    def _merge_first_batch(self, group) -> None:
        """One scale from the start: what follows in this very forward depends on it."""
        check_even_inputs()
        if isinstance(self.observer, HistogramObserver):
            merge_observers([self.observer], group, "fake_quantize")
        else:
            merge_ranges([self.observer], group)

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
        if self._used is not None:
            self._used = None  # the buffers hold what this forward uses
        return _ops.fused_observe_fake_quantize(
            x, observer.min_val, observer.max_val, observer.nonfinite_count, self.scale, self.zero_point,
            averaging_constant=spec.averaging_constant, axis=spec.axis, symmetric=spec.symmetric,
            quant_min=spec.quant_min, quant_max=spec.quant_max,
        )  # fmt: skip

    def _fake_quantize_and_observe(self, x: Tensor, group) -> Tensor:
        observer = self.observer
        y = _ops.fake_quantize_and_observe(
            x, *self._qparams_for_backward(), observer.min_val, observer.max_val, observer.nonfinite_count,
            averaging_constant=self.spec.averaging_constant, **self._codes(),
        )  # fmt: skip
        if group is None:  # else the prepared model merges what was seen first: merge_after_forward
            self.update_qparams()
        return y

    def _fake_quantize(self, x: Tensor) -> Tensor:
        spec = self.spec
        if spec.learnable_clip and self.training:
            self._follow_optimizer()
            return _ops.pact_fake_quantize(x, self.clip, self.zero_point, **self._codes())
        if spec.learnable:
            return self._fake_quantize_learned(x)
        scale, zero_point = self._qparams_for_backward() if self.training and self.observer_enabled else (self.scale, self.zero_point)
        granularity = {"axis": spec.axis, "group_size": spec.group_size}
        if spec.rounding != "nearest" and self.training:
            noise = torch.empty_like(x, dtype=torch.float32).uniform_(-0.5, 0.5)
            rounds = spec.rounding == "stochastic"
            return _ops.noisy_fake_quantize(x, noise, scale, zero_point, **granularity, **self._codes(), round=rounds)
        return _ops.fake_quantize(x, scale, zero_point, **granularity, **self._codes())

    def _fake_quantize_learned(self, x: Tensor) -> Tensor:
        spec = self.spec
        grad_factor = 1.0
        if torch.is_grad_enabled() and not torch.jit.is_tracing():
            if self.training:  # train() sees to the last step
                self._follow_optimizer()
            grad_factor = 1.0 / math.sqrt(x.numel() / self.scale.numel() * spec.quant_max)
        return _ops.fake_quantize(
            x, self.scale, self.zero_point, axis=spec.axis, group_size=spec.group_size, **self._codes(), grad_factor=grad_factor
        )

    def _qparams_for_backward(self) -> tuple[Tensor, Tensor]:
        """Copies: a later forward, or the merging of processes, overwrites the buffers, maybe before this backward."""
        if _recomputing():
            return self._used or (self.scale, self.zero_point)
        copies = self.scale.clone(), self.zero_point.clone()
        if not torch.compiler.is_compiling():
            self._used = copies
        return copies

    def _fake_quantize_rows(self, x: Tensor) -> Tensor:
        spec = self.spec
        if spec.float8:
            columns = spec.axis == 1  # a weight whose output channels are its columns
            y = _ops.fake_quantize_fp8(x.t() if columns else x, dtype=spec.dtype)
            return y.t() if columns else y
        rows = {"axis": -1, "group_size": spec.group_size or _length_of_rows(x)}
        scale, zero_point = _ops.choose_qparams(x, **rows, symmetric=spec.symmetric, **self._codes())
        return _ops.fake_quantize(x, scale, zero_point, **rows, **self._codes())

    def _codes(self) -> dict:
        return {"quant_min": self.spec.quant_min, "quant_max": self.spec.quant_max}

    def _follow_optimizer(self) -> None:
        """Brings a learned scale back into range, or the scale to a learned clipping value."""
        if self.spec.learnable:
            self.scale.data.clamp_(min=_MIN_SCALE)  # .data: a backward that is still to come need not know
        elif self.spec.learnable_clip and self._progress == _HAS_QPARAMS:
            self.clip.data.clamp_(min=_MIN_CLIP)
            self.scale.data.copy_(_ops.pact_scale(self.clip, self.zero_point, **self._codes()))

    def _ensure_allocated(self, name: str, shape, device) -> None:
        if getattr(self, name).numel() == 0:
            getattr(self, name).data = torch.ones(shape, device=device)


@not_compiled
def _merge(prepared: nn.Module, group) -> None:
    merged = [module for module in prepared.modules() if isinstance(module, FakeQuantize) and _merges_ranges(module)]
    if not merged:
        return
    check_even_inputs()
    merge_ranges([fake_quant.observer for fake_quant in merged], group)
    # The others wait for their first batch.
    _update_qparams_of_ranges([fq for fq in merged if fq.fake_quant_enabled and fq._progress == _HAS_QPARAMS])


@torch.no_grad()
def _update_qparams_of_ranges(fake_quants: list[FakeQuantize]) -> None:
    """What `update_qparams` does to each of these, which have qparams and an observer of ranges: in a few ops for all, because a
    training step pays for every call."""
    alike: dict[tuple, list[FakeQuantize]] = {}
    for fake_quant in fake_quants:
        spec = fake_quant.spec
        key = (spec.symmetric, spec.quant_min, spec.quant_max, spec.power_of_two, fake_quant.scale.device)
        alike.setdefault(key, []).append(fake_quant)
    for same in alike.values():
        low, high = (torch.cat([getattr(fq.observer, name).flatten() for fq in same]) for name in ("min_val", "max_val"))
        counts = [fake_quant.scale.numel() for fake_quant in same]
        for name, values in zip(("scale", "zero_point"), same[0].observer.qparams_of_range(low, high)):
            buffers = [getattr(fake_quant, name) for fake_quant in same]
            torch._foreach_copy_(buffers, [part.view_as(buffer) for part, buffer in zip(values.split(counts), buffers)])


def _merges_ranges(fake_quant: FakeQuantize) -> bool:
    """Asks nothing that depends on the data: each process must bring the same observers, whatever its batch has reached."""
    if fake_quant.observer is None or fake_quant.of_parameter or not fake_quant.observer_enabled:
        return False
    starts_learning = fake_quant.spec.learns and fake_quant.fake_quant_enabled  # from a first batch that is merged at once
    return not (starts_learning or isinstance(fake_quant.observer, HistogramObserver))


def merge_after_forward(prepared: nn.Module, args, output) -> None:
    """The forward hook of a prepared model: inside a DistributedDataParallel and in a sharded model, gives the observers of all
    processes the same state after every training step, by one all-reduce."""
    group = prepared.torchquant_process_group or training_group()
    if group is not None and prepared.training:
        _merge(prepared, group)


def _length_of_rows(x: Tensor) -> int:
    """A constant in a trace too: the layer behind has a fixed number of input features."""
    if not torch.jit.is_tracing():
        return x.size(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return int(x.size(-1))
