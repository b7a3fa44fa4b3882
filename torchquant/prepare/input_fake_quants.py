"""The fake-quants that layers hold on their own inputs, where no graph holds them."""

from torch import nn

from .placement import Placement
from .quantized_parameter import add_submodule, extend


class FakeQuantizedInput(nn.Module):
    """Mixed into a compute layer: fake-quantizes its input."""

    def forward(self, input, *args, **kwargs):
        return super().forward(self.input_fake_quant(input), *args, **kwargs)


class InputFakeQuants:
    """One fake-quant per tensor and spec: layers that received the very same tensor in the example run share one."""

    def __init__(self, placement: Placement):
        self.placement = placement
        self._made = {}

    def of(self, tensor, spec, reader):
        """The fake-quant for `tensor` (None for one that no example run saw), to be registered at the path `reader`."""
        key = (reader if tensor is None else id(tensor), spec)
        fake_quant, first = self._made.get(key, (None, None))
        if fake_quant is None:
            fake_quant, first = self._made[key] = self.placement.new_activation(spec), reader
        shared = f", shared with {first}" if first != reader else ""
        self.placement.report.add(reader, "activation", reader, f"input of a quantized layer{shared}")
        return fake_quant

    def quantize_input_of(self, path, module, tensor, spec):
        """Makes the compute layer at `path` fake-quantize its input."""
        name = "input_fake_quant"
        add_submodule(module, name, self.of(tensor, spec, f"{path}.{name}" if path else name))
        extend(module, mixin=FakeQuantizedInput)
