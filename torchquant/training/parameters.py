"""The parameters that quantization adds to a model, for an optimizer that treats them apart."""

from __future__ import annotations

from torch import nn

from torchquant.fake_quantize import FakeQuantize


def quantization_parameters(prepared: nn.Module) -> list[nn.Parameter]:
    """The learned scales and zero points (LSQ, LSQ+) and clipping values (PACT) of a prepared model, each once; none where
    nothing is learned.

    They may want a weight decay of their own:

        learned = training.quantization_parameters(prepared)
        known = {id(parameter) for parameter in learned}
        others = [parameter for parameter in prepared.parameters() if id(parameter) not in known]
        torch.optim.SGD([{"params": others}, {"params": learned, "weight_decay": 1e-3}], lr=0.01)
    """
    fake_quants = [module for module in prepared.modules() if isinstance(module, FakeQuantize)]
    return [parameter for fake_quant in fake_quants for parameter in fake_quant.parameters(recurse=False)]


def parameter_groups(model: nn.Module, lr: float) -> list[dict]:
    """All parameters of a model in groups for Adam and its relatives, which move a parameter by about the learning rate however small
    it is:

        groups = training.parameter_groups(prepared, lr=1e-3)
        optimizer = torch.optim.AdamW(groups, lr=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [group["lr"] for group in groups], total_steps=steps)

    A learned scale is what one code is worth, so a step of `lr` would move the end of an 8-bit range by `lr` 127 or 255 times. Learned
    scales get `lr` divided by the largest code, so that no end of a range moves faster than the weights do, and no weight decay. All
    other parameters, and those of a model that learns no scales, have `lr`. (SGD needs no groups: LSQ scales the gradients for it.)
    """
    if not lr > 0:
        raise ValueError(f"parameter_groups: lr must be positive, got {lr!r}")
    by_codes: dict[int, list[nn.Parameter]] = {}
    for module in model.modules():
        if isinstance(module, FakeQuantize) and module.spec.learnable:
            by_codes.setdefault(max(module.spec.quant_max, -module.spec.quant_min), []).append(module.scale)
    scales = {id(scale) for group in by_codes.values() for scale in group}
    others = [parameter for parameter in model.parameters() if id(parameter) not in scales]
    learned = [{"params": group, "lr": lr / codes, "weight_decay": 0.0} for codes, group in by_codes.items()]
    return [{"params": others, "lr": lr}, *learned]
