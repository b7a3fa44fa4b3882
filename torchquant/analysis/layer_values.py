"""What every layer of a model computes for one batch: of a float or prepared model, and of a converted one. Called by compare and by
the PTQ methods that look at tensors where the fake-quants stand."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from torchquant.agreement import Origins, ReceiptWatch
from torchquant.calibrate import static_fake_quants
from torchquant.fake_quantize import FakeQuantize
from torchquant.prepare.example_run import evaluating, without_fused_attention
from torchquant.prepare.fx_placement import CONTAINER
from torchquant.prepare.patterns import COMPUTE_MODULES
from torchquant.prepare.quantized_parameter import weight_fake_quants
from torchquant.trees import tensors_in


@dataclass
class LayerValues:
    """One forward. A module or fake-quant that runs again has "#2" behind its path, then "#3"."""

    layers: dict[str, Tensor] = field(default_factory=dict)  # the output of every innermost module and functional layer
    places: dict[str, Tensor] = field(default_factory=dict)  # what each static activation fake-quant stands for, in float
    fake_quants: dict[str, FakeQuantize] = field(default_factory=dict)  # of each place
    layer_of_place: dict[str, str] = field(default_factory=dict)  # the layer whose output the place is, where it is one
    order: list[str] = field(default_factory=list)  # layers and places as they came
    # Path of a fake-quant -> the quantized layers that read its tensor. Only while fake-quants are off.
    readers: dict[str, list[str]] = field(default_factory=dict)
    output: object = None


class LayerOrigins(Origins):
    """Also knows which layer gave a tensor, which place a tensor is, and which weights are computed with which places."""

    def __init__(self):
        super().__init__()
        self.made_by: dict[int, str] = {}  # tensor -> the layer that gave it
        self.place_of: dict[int, str] = {}  # tensor -> the fake-quant that stands on it
        self.weights: dict[int, list[str]] = {}  # address of a quantized weight -> the modules that hold it
        self.readers: dict[str, dict[str, None]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if isinstance(result, Tensor) and result._cdata not in self.sources:
            self._note_readers(func, args, kwargs or {}, result)
        for argument, value in zip(func._schema.arguments, args):
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor):
                self.made_by.pop(value._cdata, None)  # F.relu(x, inplace=True): no longer what the layer gave
        return result

    def _note_readers(self, func, args, kwargs, result) -> None:
        tensors = tensors_in(args)
        layers = [layer for tensor in tensors for layer in self.weights.get(tensor.data_ptr(), ())]
        if not layers:
            return
        self.layer_computed(layers, result)
        for position, tensor in enumerate(args):
            places = {self.place_of[o._cdata] for o in self.of(tensor) if o._cdata in self.place_of} if isinstance(tensor, Tensor) else ()
            for place in places:
                self.readers.setdefault(place, {}).update(dict.fromkeys(layers))
                self.layer_read(place, layers, position, func, args, kwargs, result)

    def layer_computed(self, layers: list[str], result: Tensor) -> None:
        """An op with a weight of `layers` gave `result`; the recorder of a forward puts its own here."""

    def layer_read(self, place, layers, position, func, args, kwargs, result) -> None:
        """The op `func` of `layers` computed `result` from the tensor at `place`, its argument at `position`; for who wants to measure."""


class _Recorder:
    """Forward hooks on every module that write a LayerValues."""

    def __init__(self, model: nn.Module, origins: LayerOrigins):
        self.values, self.origins = LayerValues(), origins
        self.calls: Counter[str] = Counter()
        self.running: list[list] = []  # [path, whether a module ran inside, the module]
        self.handles = []
        origins.layer_computed = self._note_functional
        static = static_fake_quants(model)
        owners: dict[FakeQuantize, list[str]] = {}
        paths = {module: path for path, module in model.named_modules()}
        for module, _, fake_quant in weight_fake_quants(model):
            owners.setdefault(fake_quant, []).append(paths[module])
        for fake_quant, layers in owners.items():
            self.handles.append(fake_quant.register_forward_hook(self._weight_hook(layers)))
        for path, module in model.named_modules():
            if path in static:
                self.handles.append(module.register_forward_pre_hook(self._place_hook(path)))
            elif path != CONTAINER and not isinstance(module, FakeQuantize):
                self.handles.append(module.register_forward_pre_hook(self._enter_hook(path)))
                self.handles.append(module.register_forward_hook(self._leave, always_call=True))

    def _key(self, path: str) -> str:
        self.calls[path] += 1
        return path if self.calls[path] == 1 else f"{path}#{self.calls[path]}"

    def _enter_hook(self, path: str):
        def enter(module, args):
            for outer in self.running:
                outer[1] = True
            self.running.append([path, False, module])

        return enter

    def _leave(self, module, args, output):
        path, holds_others, _ = self.running.pop()
        tensor = next(iter(tensors_in(output)), None)
        if holds_others or tensor is None or not tensor.is_floating_point():
            return
        self._note(path, tensor)

    def _note_functional(self, layers: list[str], result: Tensor) -> None:
        """F.linear(x, self.qkv.weight) is a layer too. One that its module's own forward calls is noted when that returns."""
        path, _, module = self.running[-1]
        if not isinstance(module, nn.RNNBase) and not (path in layers and isinstance(module, tuple(COMPUTE_MODULES))):
            self._note(layers[0], result)

    def _note(self, path: str, tensor: Tensor) -> None:
        key = self._key(path)
        self.values.layers[key] = tensor.clone()  # an operation in place may overwrite it
        self.values.order.append(key)
        self.origins.made_by[tensor._cdata] = key
        self.origins.alive.append(tensor)

    def _weight_hook(self, layers: list[str]):
        def read(fake_quant, args, weight):
            self.origins.weights[weight.data_ptr()] = layers
            self.origins.alive.append(weight)

        return read

    def _place_hook(self, path: str):
        def stand(fake_quant, args):
            for origin in self.origins.of(args[0]):
                key = self._key(path)
                self.origins.place_of[origin._cdata] = path
                self.values.places[key] = origin.clone()
                self.values.fake_quants[key] = fake_quant
                self.values.order.append(key)
                if origin._cdata in self.origins.made_by:
                    self.values.layer_of_place[key] = self.origins.made_by[origin._cdata]

        return stand


def run_layers(model: nn.Module, args: tuple, kwargs: dict, origins: LayerOrigins | None = None) -> LayerValues:
    """Runs the model in eval mode as it is, its fake-quants on or off, and notes every value."""
    origins = origins or LayerOrigins()
    recorder = _Recorder(model, origins)
    try:
        with evaluating(model), torch.inference_mode(), without_fused_attention(), origins:
            recorder.values.output = model(*args, **kwargs)
    finally:
        for handle in recorder.handles:
            handle.remove()
    recorder.values.readers = {place: list(layers) for place, layers in origins.readers.items()}
    return recorder.values


@contextlib.contextmanager
def fake_quants_set(model: nn.Module, on: bool):
    """The model computes with its fake-quants on or off, observers asleep; every fake-quant gets its state back."""
    fake_quants = [module for module in model.modules() if isinstance(module, FakeQuantize)]
    states = [fake_quant.get_extra_state() for fake_quant in fake_quants]
    for fake_quant in fake_quants:
        fake_quant.observer_enabled, fake_quant.fake_quant_enabled = False, on
    try:
        yield
    finally:
        for fake_quant, state in zip(fake_quants, states):
            fake_quant.set_extra_state(state)


@dataclass
class ConvertedValue:
    """What an op gave: codes, or floats where a layer ends in floats."""

    row: dict | None  # of the receipt; None where floats became codes
    result: Tensor
    # of the codes, where the op says; a pool or a table knows only the ratio of its scales
    scale: float | Tensor | None
    zero_point: int | Tensor
    quant_min: int
    quant_max: int


class _ConvertedRecorder(ReceiptWatch):
    def __init__(self, receipt_rows: list[dict]):
        super().__init__(receipt_rows)
        self.values: list[ConvertedValue] = []

    def entered(self, scale, zero_point, result, kwargs):
        whole = torch.iinfo(result.dtype)
        ends = (kwargs.get("quant_min"), whole.min), (kwargs.get("quant_max"), whole.max)
        quant_min, quant_max = (bound if given is None else given for given, bound in ends)
        self.values.append(ConvertedValue(None, result.clone(), scale, zero_point, quant_min, quant_max))
        return result

    def computed(self, row, result, func, kwargs):
        def argument(name, otherwise):
            declared = {a.name: a.default_value for a in func._schema.arguments}
            return kwargs.get(name, declared.get(name, otherwise))

        self.values.append(
            ConvertedValue(
                row, result.clone(), argument("output_scale", None), argument("output_zero_point", 0),
                argument("output_quant_min", 0), argument("output_quant_max", 255),
            )  # fmt: skip
        )
        return result


def run_converted(quantized, args: tuple, kwargs: dict) -> tuple[object, list[ConvertedValue]]:
    """(output, what each quantize and each row of the receipt gave), op by op; the ops inside an island run one at a time."""
    with _ConvertedRecorder(quantized.receipt.rows) as recorder:
        output = quantized(*args, **kwargs)
    recorder.check_complete()
    return output, recorder.values
