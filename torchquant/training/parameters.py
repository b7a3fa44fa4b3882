"""The parameters that quantization adds to a model, for an optimizer that treats them apart."""

from __future__ import annotations

from torch import nn

from torchquant.fake_quantize import FakeQuantize


def quantization_parameters(prepared: nn.Module) -> list[nn.Parameter]:
    """The learned scales and zero points (LSQ, LSQ+) and clipping values (PACT) of a prepared model, each once; none where
    nothing is learned.

    They often want a learning rate or weight decay of their own:

        learned = training.quantization_parameters(prepared)
        known = {id(parameter) for parameter in learned}
        others = [parameter for parameter in prepared.parameters() if id(parameter) not in known]
        torch.optim.SGD([{"params": others}, {"params": learned, "weight_decay": 1e-3}], lr=0.01)
    """
    fake_quants = [module for module in prepared.modules() if isinstance(module, FakeQuantize)]
    return [parameter for fake_quant in fake_quants for parameter in fake_quant.parameters(recurse=False)]
