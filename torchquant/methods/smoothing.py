"""SmoothQuant: moves the difficulty of outlier channels from activations into the weights that read them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..prepare.example_run import evaluating, unpack, without_fused_attention
from ..prepare.patterns import compute_function, operand
from ..progress import ProgressBar
from .checks import batches_as_list, check_float_model
from .dataflow import Dataflow, Layer, Step, Value, close, open_attention
from .homogeneous import ELEMENTWISE
from .report import MethodReport

_METHOD = "smooth_quant"
_KEEPS_CHANNELS = frozenset("view reshape flatten contiguous clone dropout dropout_".split())
# Move channels about: that they arrive in order is found out by running the model.
_MOVES = frozenset("view reshape flatten unflatten transpose permute swapaxes squeeze unsqueeze".split())


class _Refused(Exception):
    """Why the input of some layers cannot be smoothed."""


@dataclass(eq=False)
class _Source:
    """What is divided by the factors: vectors of one value per channel, or the output rows of a linear layer."""

    name: str
    vectors: list[Tensor] = field(default_factory=list)
    layer: Layer | None = None
    first_row: int = 0
    in_order: bool = True  # whether channels surely arrive in the order in which they left
    repeats: int = 1  # how often each head of `head_dim` channels arrives: grouped-query attention
    head_dim: int = 1

    def fold(self, ranges: Tensor) -> Tensor:
        """Largest of the ranges that each channel of the source has where it arrives."""
        return ranges.view(-1, self.repeats, self.head_dim).amax(1).flatten()

    def unfold(self, factors: Tensor) -> Tensor:
        """A factor for each channel that arrives."""
        return factors.view(-1, 1, self.head_dim).expand(-1, self.repeats, -1).flatten()

    def rows(self, count: int) -> list[Tensor]:
        """Views of what is divided, the channels first."""
        if self.layer is None:
            return self.vectors
        weight = self.layer.weight.detach()
        weight = weight if self.layer.kind.weight_axis == 0 else weight.t()
        bias = [] if self.layer.bias is None else [self.layer.bias.detach()]
        return [tensor.narrow(0, self.first_row, count) for tensor in (weight, *bias)]


@dataclass(eq=False)
class _Group:
    """Linear layers that read one tensor, and where its channels can be divided."""

    layers: list[Layer]
    source: _Source

    @property
    def name(self) -> str:
        return ", ".join(layer.name for layer in self.layers)


def smooth_quant(model: nn.Module, example_inputs, batches, alpha: float = 0.5) -> nn.Module:
    """A copy of the float `model` that computes the same, with outlier channels in the inputs of linear layers made small.

    Xiao et al., "SmoothQuant: Accurate and efficient post-training quantization for large language models" (ICML 2023). Channel j of the
    input of linear layers is divided by ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`` and their weights that read it are multiplied by
    it. The division goes where it costs nothing and is exact: into the weight and bias of a layer or RMS norm, into a linear layer before
    (through ReLU, through the product of a gated MLP, through attention from its value projection to its output projection). Heads of
    values that several query heads read (grouped-query attention) get one factor per channel, for the largest of their copies. Where
    anything else reads that tensor too, the layers are left alone.

    Works on nn.MultiheadAttention, nn.TransformerEncoderLayer and Hugging Face models alike.

    Args:
        model: float, on any device; it is not changed.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments. The model runs on them to see what feeds what, and
            afterwards to check that it computes the same.
        batches: typical inputs, each as `example_inputs`; their largest magnitudes per channel are ``max|X_j|``.
        alpha: from 0 (all of the difficulty stays with activations) to 1 (all goes to weights).

    Returns:
        The copy. The newest entry of its ``torchquant_methods`` is the report: a row per group of layers that read one tensor, with what
        took the factors in, or the reason why the group was left alone.

    Raises:
        TypeError, ValueError: for a model that is no float model, an alpha outside [0, 1], empty batches or batches that are none,
            and NaN or infinite activations.
        RuntimeError: if the model does not run on `example_inputs` or a batch.
    """
    check_float_model(_METHOD, model)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
        raise ValueError(f"{_METHOD}: alpha must be a number from 0 to 1, got {alpha!r}")
    batches = batches_as_list(_METHOD, batches)
    model = copy.deepcopy(model)
    flow = Dataflow(_METHOD, model, example_inputs)
    report = MethodReport(_METHOD, {"alpha": alpha, "batches": len(batches)})
    for name, reason in flow.opaque.items():
        report.add(name, reason)
    groups = _find_groups(flow, report)
    ranges = _input_ranges(model, batches, [layer for group in groups for layer in group.layers])
    with torch.no_grad():
        for group in groups:
            _smooth(flow, group, ranges, alpha, report)
    if not flow.same_output():
        raise RuntimeError(f"{_METHOD}: the smoothed model computes something else on example_inputs; please report this")
    report.attach_to(model)
    return model


def _find_groups(flow: Dataflow, report: MethodReport) -> list[_Group]:
    readers: dict[Value, list[Layer]] = {}
    for layer in flow.layers:
        if not layer.is_convolution:
            readers.setdefault(_root(layer.input), []).append(layer)
    groups = []
    for root, layers in readers.items():
        try:
            for layer in layers:
                if not flow.used_once(layer.weight):
                    raise _Refused(f"the weight of {layer.name!r} is used more than once")
            _check_readers(root, layers)
            channels = root.tensor.size(-1)
            source = _find_source(flow, root, channels)
            if source.layer is not None and source.first_row + channels // source.repeats > source.layer.channels:
                raise _Refused(f"it is not seen which channels of {source.name!r} it reads")
            groups.append(_Group(layers, source))
        except _Refused as reason:
            report.add(", ".join(layer.name for layer in layers), str(reason))
    return groups


def _root(value: Value) -> Value:
    """The tensor that `value` is a reshape of, last dimension kept."""
    while value.made_by is not None and value.made_by.name in _KEEPS_CHANNELS:
        source = value.made_by.inputs[0]
        if source.tensor.dim() == 0 or source.tensor.shape[-1:] != value.tensor.shape[-1:]:
            break
        value = source
    return value


def _check_readers(root: Value, layers: list[Layer]) -> None:
    for step in root.readers:
        outputs = step.outputs
        if step.layer in layers and step.layer.input is root:
            continue
        passed_on = step.name in _KEEPS_CHANNELS and len(outputs) == 1 and _root(outputs[0]) is root
        if not passed_on:
            raise _Refused(f"{step} reads its input too")
        _check_readers_of_reshape(outputs[0], layers)


def _check_readers_of_reshape(value: Value, layers: list[Layer]) -> None:
    for step in value.readers:
        if not (step.layer in layers and step.layer.input is value):
            raise _Refused(f"{step} reads its input too")


def _find_source(flow: Dataflow, value: Value, channels: int) -> _Source:
    """What can divide the channels of `value`; every tensor on the way there has one reader."""
    step = value.made_by
    if step is None:
        raise _Refused("its input is the model's")
    if step.layer is not None and not step.layer.is_convolution:
        return _linear_source(flow, step.layer, channels)
    if step.function in (F.layer_norm, F.rms_norm):
        return _norm_source(flow, step, channels)
    if step.name in ("mul", "__mul__", "__rmul__"):
        return _product_source(flow, step, channels)
    if step.name == "scaled_dot_product_attention":
        mixed = flow.value(step.argument(2, "value"))
        return _repeated(flow, mixed, step.outputs[0].tensor.size(-3) // mixed.tensor.size(-3) if mixed.tensor.dim() > 2 else 1, channels)
    if step.name in ("matmul", "__matmul__", "bmm"):
        return _moved(_find_source(flow, _alone(step.inputs[-1]), channels))
    if step.name in ("chunk", "split") and len(step.outputs) > 1:
        source = _find_source(flow, _alone(step.inputs[0]), channels)
        source.first_row += sum(output.tensor.size(-1) for output in step.outputs[: step.outputs.index(value)])
        return _moved(source)
    if step.name in ("repeat_interleave", "expand"):
        before, after = step.inputs[0], step.outputs[0].tensor
        if before.tensor.dim() < 2 or before.tensor.size(-1) != after.size(-1):
            raise _Refused(f"its input comes from {step}, which cannot take factors in")
        return _repeated(flow, before, after.numel() // before.tensor.numel(), channels)
    if step.name == "__getitem__" and step.outputs[0].tensor.numel() == step.inputs[0].tensor.numel():  # x[:, :, None]
        return _moved(_find_source(flow, _alone(step.inputs[0]), channels))
    if step.name == "unbind" or (step.name == "__getitem__" and isinstance(step.args[1], int)):
        picked = step.args[1] if step.name == "__getitem__" else step.outputs.index(value)
        whole = step.inputs[0]
        if {reader.name for reader in whole.readers} != {step.name} or picked < 0:
            raise _Refused(f"its input comes from {step}, which cannot take factors in")
        source = _find_source(flow, whole, channels)
        source.first_row += picked * channels
        return _moved(source)
    if step.name in ELEMENTWISE:
        return _find_source(flow, _alone(step.inputs[0]), channels)
    if step.name in _MOVES:
        return _moved(_find_source(flow, _alone(step.inputs[0]), channels))
    raise _Refused(f"its input comes from {step}, which cannot take factors in")


def _alone(value: Value) -> Value:
    others = [str(step) for step in value.readers[1:]]
    if others:
        raise _Refused(f"on the way to its input a tensor is read by {others[0]} too")
    return value


def _moved(source: _Source) -> _Source:
    source.in_order = False
    return source


def _repeated(flow: Dataflow, value: Value, repeats: int, channels: int) -> _Source:
    """The source of heads that arrive `repeats` times each, one copy beside the other."""
    if repeats == 1:
        return _moved(_find_source(flow, _alone(value), channels))
    head_dim = value.tensor.size(-1)
    if channels % (repeats * head_dim):
        raise _Refused(f"each of its heads comes from one that is repeated {repeats} times, and {channels} channels are not such heads")
    source = _find_source(flow, _alone(value), channels // repeats)
    if source.repeats > 1:
        raise _Refused("its heads are repeated twice on the way")
    source.repeats, source.head_dim = repeats, head_dim
    return _moved(source)


def _linear_source(flow: Dataflow, layer: Layer, channels: int) -> _Source:
    if not (flow.used_once(layer.weight) and flow.used_once(layer.bias)):
        raise _Refused(f"{layer.name!r}, which feeds it, uses its parameters more than once")
    if layer.channels % channels:
        raise _Refused(f"{layer.name!r}, which feeds it, has {layer.channels} channels, and it reads {channels}")
    return _Source(layer.name, layer=layer)


def _norm_source(flow: Dataflow, step: Step, channels: int) -> _Source:
    vectors = [step.argument(2, "weight"), step.argument(3, "bias") if step.function is F.layer_norm else None]
    vectors = [vector for vector in vectors if vector is not None]
    owned = all(id(vector) in flow.stored and flow.used_once(vector) and vector.shape == (channels,) for vector in vectors)
    if not vectors or not owned:
        raise _Refused(f"{step} has no weight of its own for each channel")
    return _Source(flow.stored[id(vectors[0])].removesuffix(".weight"), [vector.detach() for vector in vectors])


def _product_source(flow: Dataflow, step: Step, channels: int) -> _Source:
    """x * weight of a norm that is written out, or one factor of a gated MLP."""
    for value in reversed(step.inputs):
        if id(value.tensor) in flow.stored and flow.used_once(value.tensor) and value.tensor.shape == (channels,):
            return _Source(flow.stored[id(value.tensor)].removesuffix(".weight"), [value.tensor.detach()])
    reasons = []
    for value in reversed(step.inputs):
        try:
            if value.tensor.shape == step.outputs[0].tensor.shape and len(step.inputs) == 2:
                return _find_source(flow, _alone(value), channels)
        except _Refused as reason:
            reasons.append(str(reason))
    raise _Refused(reasons[0] if reasons else f"its input comes from {step}, which cannot take factors in")


class _Watch(TorchFunctionMode):
    """Calls `note(layer, input, result)` whenever one of the layers runs."""

    def __init__(self, layers: list[Layer], note):
        super().__init__()
        self.layers, self.note = {_place(layer.weight): layer for layer in layers}, note

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        compute = compute_function(function)
        weight = operand(args, kwargs, compute.weight) if compute else None
        layer = self.layers.get(_place(weight)) if isinstance(weight, Tensor) else None
        result = function(*args, **kwargs)
        if layer is not None:
            self.note(layer, operand(args, kwargs, compute.input), result)
        return result


def _place(weight: Tensor) -> tuple:
    """Where a weight lies: rows of a parameter are another tensor in every run."""
    return weight.data_ptr(), weight.shape, weight.stride()


def _input_ranges(model: nn.Module, batches: list, layers: list[Layer]) -> dict[Layer, Tensor]:
    """Largest magnitude of each input channel of the layers, over all batches."""
    ranges: dict[Layer, Tensor] = {}

    def note(layer, x, result):
        largest = x.float().abs().reshape(-1, x.size(-1)).amax(0)
        ranges[layer] = torch.maximum(ranges[layer], largest) if layer in ranges else largest

    with evaluating(model), torch.no_grad(), without_fused_attention(), open_attention(model), ProgressBar(_METHOD, len(batches)) as bar:
        for index, batch in enumerate(batches):
            args, kwargs = unpack(batch, f"{_METHOD}: batch {index}")
            try:
                with _Watch(layers, note):
                    model(*args, **kwargs)
            except Exception as error:
                raise RuntimeError(f"{_METHOD}: the model does not run on batch {index}: {error}") from error
            bar.advance()
    if broken := [layer.name for layer, largest in ranges.items() if not largest.isfinite().all()]:
        raise ValueError(f"{_METHOD}: the inputs of {', '.join(broken)} are infinite or NaN; check the batches and the float model")
    return ranges


def _results(flow: Dataflow, group: _Group) -> list[Tensor]:
    """What the group's layers return on the example."""
    results = []
    with open_attention(flow.model), _Watch(group.layers, lambda layer, x, result: results.append(result.clone())):
        flow.run()
    return results


def _smooth(flow: Dataflow, group: _Group, ranges: dict[Layer, Tensor], alpha: float, report: MethodReport) -> None:
    seen = [ranges[layer] for layer in group.layers if layer in ranges]
    if not seen:
        report.add(group.name, "no batch reached it")
        return
    activations = torch.stack(seen).amax(0)
    weights = torch.stack([layer.input_ranges().float() for layer in group.layers]).amax(0)
    factors = _factors(group.source.fold(activations), group.source.fold(weights), alpha)
    arriving = group.source.unfold(factors)
    expected = None if group.source.in_order else _results(flow, group)
    touched = [*group.source.rows(len(factors)), *(layer.weight.detach() for layer in group.layers)]
    kept = [tensor.clone() for tensor in touched]
    for rows in group.source.rows(len(factors)):
        rows.div_(factors.view(-1, *[1] * (rows.dim() - 1)).to(rows.dtype))
    for layer in group.layers:
        layer.scale_inputs(arriving.to(layer.weight.dtype))
    if expected is not None and not all(map(close, _results(flow, group), expected)):
        for tensor, values in zip(touched, kept):
            tensor.copy_(values)
        report.add(group.name, f"the channels of {group.source.name!r} do not arrive at it one to one")
        return
    report.add(
        group.name, absorbed_by=group.source.name, largest_input_before=float(activations.max()),
        largest_input_after=float((activations / arriving).max()),
    )  # fmt: skip


def _factors(activations: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """Equation 4 of the paper; 1 where a channel carries nothing."""
    factors = activations.pow(alpha) / weights.pow(1 - alpha)
    usable = (activations > 0) & (weights > 0) & (factors > 0) & factors.isfinite()
    return torch.where(usable, factors, torch.ones_like(factors))
