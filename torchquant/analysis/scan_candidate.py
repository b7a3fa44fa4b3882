"""One way to quantize a model, prepared and calibrated once, whose layers a scan switches between integers and floats."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils import _pytree as pytree

from torchquant import _C
from torchquant.calibrate import calibrate, finish_calibration, named_fake_quants
from torchquant.convert import convert
from torchquant.fake_quantize import FakeQuantize
from torchquant.prepare import float_parameter, prepare
from torchquant.prepare.quantized_parameter import weight_fake_quants
from torchquant.qconfig import QConfig, QConfigMapping, as_mapping
from torchquant.quantized_model import QuantizedModel
from torchquant.receipt import Receipt
from torchquant.tracing import Trace

# Of each measurement: enough runs for medians, in a time that is short beside an evaluation.
_WARM_UP_RUNS = 2
_BURSTS = 3
_RUNS_OF_A_BURST = (2, 7)
_BURST_MS = 20.0


@dataclass
class ScannedLayer:
    """A layer, or several that share a weight: its fake-quants, and what it would gain."""

    name: str
    kind: str
    names: set[str] = field(default_factory=set)  # as the receipt may call it
    modules: list[str] = field(default_factory=list)  # paths of the modules that own its weights
    weights: list[FakeQuantize] = field(default_factory=list)
    inputs: list[FakeQuantize] = field(default_factory=list)
    float_bytes: int = 0
    quantized_bytes: int = 0
    # of one run on the example inputs; None where it was not measured
    float_ms: float | None = None
    quantized_ms: float | None = None
    kernel: str | None = None  # None until measured, "" for a layer that conversion leaves float


class Candidate:
    """`qconfig` on a copy of `model`, calibrated, with every fake-quant off."""

    def __init__(self, name: str, model: nn.Module, example_inputs, qconfig: QConfig | QConfigMapping):
        self.name = name
        self.qconfig = qconfig
        self.prepared = prepare(model, example_inputs, qconfig)
        self.example_inputs = example_inputs
        self.layers: list[ScannedLayer] = []

    def calibrate(self, batches: Iterable | None, calibrated: list[Candidate]) -> None:
        """Takes over what observers of the same spec at the same places saw in `calibrated`; where that is not all, runs `batches`."""
        waiting = {path: fq for path, fq in named_fake_quants(self.prepared).items() if not fq.observed}
        twins = {path: next(filter(None, (other._twin(path, fq) for other in calibrated)), None) for path, fq in waiting.items()}
        if all(twins.values()):
            for path, fake_quant in waiting.items():
                fake_quant.load_state_dict(twins[path].state_dict())
            finish_calibration(self.prepared)
        elif batches is None:
            raise ValueError(
                f"sensitivity_scan: the QConfig {self.name!r} has activations with fixed scales, so it needs calibration batches; got None"
            )
        else:
            calibrate(self.prepared, batches)
        self._trace = Trace(self.prepared, self.example_inputs, fixed_shapes=True)
        self.layers = self._find_layers()
        self.switch_on(())

    def _twin(self, path: str, fake_quant: FakeQuantize) -> FakeQuantize | None:
        other = named_fake_quants(self.prepared).get(path)
        return other if other is not None and other.spec == fake_quant.spec else None

    # ---- layers

    def _find_layers(self) -> list[ScannedLayer]:
        owners = {}  # fake-quant -> [(path of the owner, the parameter's name, the owner)]
        paths = {module: path for path, module in self.prepared.named_modules()}
        for module, parameter, fake_quant in weight_fake_quants(self.prepared):
            owners.setdefault(fake_quant, []).append((paths[module], parameter, module))
        layers: list[ScannedLayer] = []
        for row in _C.layer_fake_quants(self._trace.script._c):
            weights = self._fake_quants(row["weights"])
            modules = list(dict.fromkeys(path for weight in weights for path, _, _ in owners.get(weight, ())))
            layer = next((layer for layer in layers if {*layer.modules} & {*modules} or {*layer.weights} & {*weights}), None)
            if layer is None:
                layer = ScannedLayer(row["layer"], row["kind"])
                layers.append(layer)
            layer.names.add(row["layer"])
            layer.modules = list(dict.fromkeys([*layer.modules, *modules]))
            layer.inputs = list(dict.fromkeys([*layer.inputs, *self._fake_quants(row["inputs"])]))
            for weight in weights:
                if weight not in layer.weights:
                    layer.weights.append(weight)
                    _, parameter, module = owners[weight][0]
                    _add_bytes(layer, float_parameter(module, parameter), weight)
        return layers

    def _fake_quants(self, paths: list[str]) -> list[FakeQuantize]:
        modules = [self.prepared.get_submodule(path) for path in paths]
        return [module for module in modules if isinstance(module, FakeQuantize)]  # a recurrent layer's loop has none of its own

    def qconfig_of(self, layer: ScannedLayer) -> QConfig:
        if isinstance(self.qconfig, QConfig):
            return self.qconfig
        return as_mapping(self.qconfig).resolve(self.prepared)[layer.modules[0]]

    # ---- switches

    def all_fake_quants(self) -> list[FakeQuantize]:
        return list(named_fake_quants(self.prepared).values())

    def alone(self, layer: ScannedLayer) -> list[FakeQuantize]:
        return [*layer.weights, *layer.inputs]

    def but_one(self, layer: ScannedLayer) -> list[FakeQuantize]:
        """What other layers read too stays quantized."""
        shared = {fake_quant for other in self.layers if other is not layer for fake_quant in other.inputs}
        off = {*layer.weights, *layer.inputs} - shared
        return [fake_quant for fake_quant in self.all_fake_quants() if fake_quant not in off]

    def switch_on(self, fake_quants: Iterable[FakeQuantize]) -> None:
        """These, and all others off."""
        on = set(fake_quants)
        for fake_quant in self.all_fake_quants():
            fake_quant.enable_fake_quant(fake_quant in on)

    # ---- what was calibrated, for the journal

    def ranges(self) -> dict[str, list[float]]:
        """Path of each calibrated activation -> its scale and zero point. Those of weights follow from the model."""
        weights = {weight for layer in self.layers for weight in layer.weights}
        return {
            path: [float(fake_quant.scale), float(fake_quant.zero_point)]
            for path, fake_quant in named_fake_quants(self.prepared).items()
            if fake_quant not in weights and not fake_quant.spec.dynamic and fake_quant.scale.numel() == 1
        }

    # ---- latency

    def measure(self, known: dict[str, dict], advance: Callable[[], None]) -> dict:
        """Times every layer as floats and as the integer op that ships, and the whole model both ways:
        {"float_ms", "quantized_ms", "kernels": {name: kernel}, "layers": {name: [float_ms, quantized_ms]}}, of one call on the example
        inputs, without what runs in loops. Floats that another candidate's times in `known` have are taken from there. `advance` is
        called after each layer."""
        script, inputs = self._trace.script, self._tensors()
        others = list(known.values())
        converted, receipt_json = _C.convert(script._c, "allow")
        *float_models_ms, quantized_ms = _alternate_ms(*[] if others else [(_C.float_module(script._c), inputs)], (converted, inputs))
        times = {
            "float_ms": others[0]["float_ms"] if others else float_models_ms[0],
            "quantized_ms": quantized_ms,
            "kernels": {row["layer"].split("#")[0]: row["kernel"] for row in Receipt.from_json(receipt_json).rows},
            "layers": {},
        }
        float_ms = {name: measured[0] for other in others for name, measured in other["layers"].items()}
        for pair in _C.layer_pairs(script._c, inputs):
            name = pair["layer"]
            measured = times["layers"].setdefault(name, [float_ms.get(name, 0.0), 0.0])
            *floats_ms, quantized_ms = _alternate_ms(*[] if name in float_ms else [pair["float"]], pair["quantized"])
            measured[0] += sum(floats_ms)
            measured[1] += quantized_ms
            advance()
        return times

    def measure_whole(self) -> tuple[QuantizedModel, float, float]:
        """(the converted model, milliseconds of the float one on the example inputs, of the converted one)."""
        quantized = convert(self.prepared, self.example_inputs, "allow", fixed_shapes=True)
        script, inputs = self._trace.script, self._tensors()
        float_ms, quantized_ms = _alternate_ms((_C.float_module(script._c), inputs), (quantized.script._c, inputs))
        return quantized, float_ms, quantized_ms

    def _tensors(self) -> list[torch.Tensor]:
        inputs = list(self._trace.inputs)
        if not all(isinstance(tensor, torch.Tensor) for tensor in inputs):
            raise ValueError("sensitivity_scan: latency is measured on models whose inputs are tensors; pass measure_latency=False")
        return inputs

    def set_times(self, times: dict) -> None:
        for layer in self.layers:
            layer.kernel = next((times["kernels"][name] for name in sorted(layer.names) if times["kernels"].get(name)), "")
            measured = [times["layers"][name] for name in sorted(layer.names) if name in times["layers"]]
            if measured:
                layer.float_ms, layer.quantized_ms = (sum(column) for column in zip(*measured))


def _alternate_ms(*calls: tuple) -> list[float]:
    """Milliseconds of each (module, inputs): the smallest median of its bursts, which take turns. Another program that takes a core slows
    some of the bursts, and where the machine changes its speed all calls see both."""
    runs = []
    for module, inputs in calls:
        first = _C.measure(module, inputs, _WARM_UP_RUNS, 1)["p50_ms"]
        runs.append(max(_RUNS_OF_A_BURST[0], min(_RUNS_OF_A_BURST[1], int(_BURST_MS / max(first, 1e-6)))))
    bursts = [[_C.measure(module, inputs, 0, count)["p50_ms"] for (module, inputs), count in zip(calls, runs)] for _ in range(_BURSTS)]
    return [min(medians) for medians in zip(*bursts)]


def _add_bytes(layer: ScannedLayer, parameter: torch.Tensor, fake_quant: FakeQuantize) -> None:
    """Codes of 4 bits lie two in a byte; scales, and zero points that are not 0 by design, are fp32."""
    spec = fake_quant.spec
    four_bits = spec.quant_max - spec.quant_min <= 15 and -8 <= spec.quant_min <= 0
    count = parameter.numel()
    scales = parameter.size(spec.axis) if spec.float8 else fake_quant.scale.numel()
    parameters = scales * (1 if spec.symmetric else 2)
    layer.float_bytes += count * parameter.element_size()
    layer.quantized_bytes += (-(-count // 2) if four_bits else count) + 4 * parameters


@contextlib.contextmanager
def hashing_inputs(model: nn.Module, digest) -> Iterator[None]:
    """Feeds every tensor that the model is called with to `digest`."""

    def note(module, args, kwargs):
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                hash_tensor(digest, leaf)

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def hash_tensor(digest, tensor: torch.Tensor) -> None:
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
