"""One run of a float model as a graph of tensors: which function made each and which functions read it.

Cross-layer equalization and SmoothQuant find in it what they may rescale. It is recorded while the model runs, so it needs no
tracing: control flow, functional calls on parameters and Hugging Face models come as they are.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..prepare.example_run import evaluating, repeatable, unpack, without_fused_attention
from ..prepare.modules.attention import QuantizedAttention
from ..prepare.patterns import COMPUTE_FUNCTIONS, ComputeLayer, compute_function, is_matrix_layer, operand, runs_as
from ..prepare.quantized_parameter import extend, recipe_of, withdraw
from ..trees import tensors_in

_READS_NO_VALUES = frozenset("__get__ size dim ndimension numel stride is_contiguous is_floating_point type data_ptr".split())


@dataclass(eq=False)
class Value:
    """A tensor of the run. `made_by` is None for inputs and what is stored in the model."""

    tensor: Tensor
    made_by: Step | None = None
    readers: list[Step] = field(default_factory=list)


@dataclass(eq=False)
class Step:
    """One call of a torch function by the module at the path `caller`."""

    function: object
    args: tuple
    kwargs: dict
    caller: str
    inputs: list[Value]
    outputs: list[Value] = field(default_factory=list)
    layer: Layer | None = None

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", str(self.function))

    def __str__(self):
        return f"{self.name} in {self.caller!r}" if self.caller else self.name

    def argument(self, position: int, name: str):
        return operand(self.args, self.kwargs, (position, name))


@dataclass(eq=False)
class Layer:
    """A convolution, linear layer or product with a parameter, all of whose weights are plain parameters of the model or, as in
    attention that reads two tensors, some rows of one."""

    name: str
    kind: ComputeLayer
    weight: Tensor
    bias: Tensor | None
    groups: int
    input: Value
    output: Value

    @property
    def channels(self) -> int:
        """How many output channels there are."""
        return self.weight.size(self.kind.weight_axis) * (self.groups if self.is_transposed else 1)

    @property
    def is_transposed(self) -> bool:
        return self.kind.kind.startswith("conv_transpose")

    @property
    def is_convolution(self) -> bool:
        return self.kind.kind.startswith("conv")

    def by_channels(self) -> Tensor:
        """The weight as a view [groups, outputs of a group, inputs of a group, positions]."""
        weight = self.weight.detach()
        weight = weight.unsqueeze(0) if not self.is_convolution else weight.unflatten(0, (self.groups, -1))
        weight = weight if weight.dim() > 3 else weight.unsqueeze(-1)
        weight = weight.flatten(3)
        inputs_first = self.is_transposed or (not self.is_convolution and self.kind.weight_axis == 1)
        return weight.transpose(1, 2) if inputs_first else weight

    def output_ranges(self) -> Tensor:
        """Largest magnitude of the weights of each output channel."""
        return self.by_channels().abs().amax((2, 3)).flatten()

    def input_ranges(self) -> Tensor:
        """Largest magnitude of the weights that read each input channel."""
        return self.by_channels().abs().amax((1, 3)).flatten()

    def scale_outputs(self, factors: Tensor) -> None:
        """Multiplies each output channel, bias included."""
        self.by_channels().mul_(factors.view(self.groups, -1, 1, 1))
        if self.bias is not None:
            self.bias.detach().mul_(factors)

    def scale_inputs(self, factors: Tensor) -> None:
        """Multiplies the weights that read each input channel."""
        self.by_channels().mul_(factors.view(self.groups, 1, -1, 1))


class Dataflow:
    """Runs `model` in eval mode on the example and keeps what it did; `output` is what it returned.

    `layers` are in the order in which they ran; `uses` says how often each stored tensor was read.
    """

    def __init__(self, owner: str, model: nn.Module, example_inputs):
        self.owner = owner
        self.args, self.kwargs = unpack(example_inputs, f"{owner}: example_inputs")
        self.model = model
        self.steps: list[Step] = []
        self.values: dict[int, Value] = {}  # id of a tensor -> the newest value that it holds
        self.stored = {id(tensor): name for name, tensor in (*model.named_buffers(), *model.named_parameters())}
        self.uses: dict[int, int] = {}
        self.callers = [""]
        self._kept_rows: list[Tensor] = []
        self.rows: dict[int, tuple[Tensor, int]] = {}  # id of a layer's weight or bias -> the parameter of which it is a part, its first row
        self.opaque: dict[str, str] = {}  # layers that cannot be rescaled -> the reason
        self.output = self._record()
        self.layers = [step.layer for step in self.steps if step.layer is not None]

    def run(self) -> list[Tensor]:
        """What the model returns on the example, now."""
        with evaluating(self.model), torch.no_grad(), repeatable(), without_fused_attention():
            return [leaf.clone() for leaf in tensors_in(self.model(*self.args, **self.kwargs))]

    def same_output(self) -> bool:
        """Whether the model still returns what it returned when it was recorded, up to the rounding of its dtype."""
        return all(close(ours, theirs) for ours, theirs in zip(self.run(), self.output, strict=True))

    def value(self, tensor) -> Value | None:
        return self.values.get(id(tensor))

    def used_once(self, tensor: Tensor | None) -> bool:
        """Whether a stored tensor, or the weight or bias of a layer, has one reader."""
        if tensor is None or id(tensor) not in self.rows:
            return tensor is None or self.uses.get(id(tensor), 0) == 1
        parameter, first = self.rows[id(tensor)]
        reads = 0
        for view in (output for step in self.values[id(parameter)].readers for output in step.outputs):
            part = self._part_of_stored(view.tensor)
            if part is None:
                return False
            if part[1] < first + len(tensor) and first < part[1] + len(view.tensor):
                reads += len(view.readers)
        return reads == 1

    def _record(self) -> list[Tensor]:
        hooks = []
        for path, module in self.model.named_modules():
            hooks.append(module.register_forward_pre_hook(lambda *_, path=path: self.callers.append(path), prepend=True))
            hooks.append(module.register_forward_hook(self._leave))
        try:
            with evaluating(self.model), torch.no_grad(), repeatable(), without_fused_attention(), open_attention(self.model):
                with _Recorder(self):
                    output = self.model(*self.args, **self.kwargs)
        except Exception as error:
            raise RuntimeError(f"{self.owner}: the model does not run on example_inputs: {error}") from error
        finally:
            for hook in hooks:
                hook.remove()
        returned = tensors_in(output)
        end = Step("the model's output", (), {}, "", [])
        for tensor in returned:
            self._value_of(tensor).readers.append(end)
        return [tensor.clone() for tensor in returned]

    def _leave(self, *_) -> None:
        self.callers.pop()

    def note(self, function, args, kwargs, result) -> None:
        made = tensors_in(result)
        if not made and getattr(function, "__name__", "") in _READS_NO_VALUES:
            return
        read = tensors_in((args, kwargs))
        for tensor in read:
            if id(tensor) in self.stored:
                self.uses[id(tensor)] = self.uses.get(id(tensor), 0) + 1
        step = Step(function, args, kwargs, self.callers[-1], [self._value_of(tensor) for tensor in read])
        for value in step.inputs:
            value.readers.append(step)
        step.outputs = [Value(tensor, step) for tensor in made]
        self.values.update({id(value.tensor): value for value in step.outputs})  # a tensor changed in place is a new value
        step.layer = self._layer(step)
        self.steps.append(step)

    def _value_of(self, tensor: Tensor) -> Value:
        return self.values.setdefault(id(tensor), Value(tensor))

    def _layer(self, step: Step) -> Layer | None:
        compute = compute_function(step.function)
        weight = step.argument(*compute.weight) if compute else None
        if compute is None or compute.layer.kind == "embedding":
            return None
        is_function = step.function in COMPUTE_FUNCTIONS
        own = self._stored_or_rows(weight) if is_function else weight
        if id(own) not in self.stored and id(own) not in self.rows:
            if is_function:
                self.opaque[str(step)] = "its weight is a part of a parameter, or computed"
            return None
        if not (is_function or is_matrix_layer(step.function, step.args, step.kwargs, weight)):
            return None
        bias = step.argument(*compute.bias) if compute.bias else None
        own_bias = self._stored_or_rows(bias)
        name = self._name_of(own)
        if bias is not None and own_bias is None:
            self.opaque[name] = "its bias is a part of a parameter, or computed"
            return None
        groups = step.argument(6, "groups") if weight.dim() > 2 else 1
        read = step.inputs[[id(value.tensor) for value in step.inputs].index(id(step.argument(*compute.input)))]
        return Layer(name, compute.layer, own, own_bias, groups or 1, read, step.outputs[0])

    def _name_of(self, weight: Tensor) -> str:
        if id(weight) in self.stored:
            return self.stored[id(weight)].removesuffix(".weight")
        parameter, first = self.rows[id(weight)]
        return f"{self.stored[id(parameter)]}[{first}:{first + len(weight)}]"

    def _stored_or_rows(self, tensor: Tensor | None) -> Tensor | None:
        """A stored tensor itself; for a view of some of its rows one that stays; None for what is computed."""
        if tensor is None or id(tensor) in self.stored:
            return tensor
        part = self._part_of_stored(tensor)
        if part is None or tensor.dim() > 2:
            return None
        parameter, first = part
        rows = parameter.detach()[first : first + len(tensor)]
        self.rows[id(rows)] = part
        self._kept_rows.append(rows)  # an id is given again once its tensor is gone
        return rows

    def _part_of_stored(self, tensor: Tensor) -> tuple[Tensor, int] | None:
        """(the stored tensor of which this is a view of neighbouring rows, the first of them)."""
        value = self.values.get(id(tensor))
        if value is None or value.made_by is None or not value.made_by.inputs:
            return None
        whole = value.made_by.inputs[0].tensor
        shares = id(whole) in self.stored and whole.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
        if not shares or not whole.dim() or tensor.shape[1:] != whole.shape[1:] or tensor.stride() != whole.stride():
            return None
        return whole, (tensor.storage_offset() - whole.storage_offset()) // whole.stride(0)


class _Recorder(TorchFunctionMode):
    def __init__(self, dataflow: Dataflow):
        super().__init__()
        self.dataflow = dataflow

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        self.dataflow.note(function, args, kwargs, result)
        return result


@contextlib.contextmanager
def open_attention(model: nn.Module):
    """Lets every nn.MultiheadAttention call its projections one by one, as a prepared one does: torch's own forward is one call."""
    opened = [
        module
        for module in model.modules()
        if runs_as(module, nn.MultiheadAttention) and module.bias_k is None and not module.add_zero_attn and recipe_of(module) is None
    ]
    for module in opened:
        extend(module, mixin=QuantizedAttention)
    try:
        yield
    finally:
        for module in opened:
            withdraw(module, QuantizedAttention)


def close(ours: Tensor, theirs: Tensor) -> bool:
    if not theirs.is_floating_point():
        return torch.equal(ours, theirs)
    # Rescaling moves each value by a rounding error or two, which a deep network sums up.
    allowed = 0.1 if theirs.dtype in (torch.float16, torch.bfloat16) else 1e-3
    finite = theirs.isfinite()
    difference = (ours - theirs)[finite].double().norm()
    return torch.equal(ours.isfinite(), finite) and bool(difference <= allowed * theirs[finite].double().norm() + 1e-30)
