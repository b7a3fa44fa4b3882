"""Pruned models: weights that are zero stay zero through training and in the integer codes."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from torchquant.prepare import PreparedModel
from torchquant.prepare.patterns import compute_layer, float_layer


class ZeroMask(nn.Module):
    """A parametrization that holds the values at `mask == 0` at zero, and so their gradients."""

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def keep_zeros(model: nn.Module) -> nn.Module:
    """A copy of a pruned float model in which every zero of its weights stays zero, for `prepare_qat`.

    Zeros of symmetric weights are the code 0 exactly, so what is pruned in the float model is pruned in the converted one. What
    `torch.nn.utils.prune` masks is taken over, hooks and all, and so is every weight of a layer (convolution, linear,
    embedding, attention) that holds zeros itself. The mask is a parametrization (`torch.nn.utils.parametrize`) and part of the state_dict:
    `weight` becomes `parametrizations.weight.original` there. No optimizer, momentum or weight decay moves a masked weight.

    Raises:
        TypeError: a model that is prepared already; mask the float model.
        ValueError: no weight has a zero; or a recurrent layer's has, which cannot be held.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"keep_zeros: model must be a torch.nn.Module, got {type(model).__name__}")
    if any(isinstance(module, PreparedModel) for module in model.modules()):
        raise TypeError("keep_zeros: the model is prepared already; call keep_zeros on the float model, then prepare what it returns")
    pruned = {path: _pruned_names(module) for path, module in model.named_modules()}
    _check_recurrent(model)
    # What a pruning hook recomputes is no leaf, which deepcopy refuses; the copy gets a value of its own below.
    attributes = [vars(model.get_submodule(path))[name] for path, names in pruned.items() for name in names]
    masked = copy.deepcopy(model, {id(attribute): attribute.detach().clone() for attribute in attributes})
    masks = [
        _mask(masked.get_submodule(path), name, name in names)
        for path, names in pruned.items()
        for name in sorted({*names, *_weight_names(masked.get_submodule(path))})
    ]
    if not any(masks):
        raise ValueError(f"keep_zeros: no weight of {type(model).__name__} has a zero; prune the model first (torch.nn.utils.prune)")
    return masked


def _pruned_names(module: nn.Module) -> list[str]:
    hooks = module._forward_pre_hooks.values()
    return [hook._tensor_name for hook in hooks if isinstance(hook, prune.BasePruningMethod)]


def _weight_names(module: nn.Module) -> list[str]:
    if isinstance(module, nn.MultiheadAttention):
        names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    else:
        names = ("weight",) if compute_layer(module) or float_layer(module) else ()
    return [name for name in names if module._parameters.get(name) is not None]


def _check_recurrent(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if isinstance(module, nn.RNNBase) and any((weight == 0).any() for weight in module._flat_weights if weight.dim() > 1):
            raise ValueError(
                f"keep_zeros: {path or 'the model'}: the zeros of a {type(module).__name__} cannot be held, because torch keeps a list of "
                "its weights aside; leave recurrent weights unpruned"
            )


def _mask(module: nn.Module, name: str, pruned: bool) -> bool:
    """Holds the zeros of one parameter, if it has any."""
    if pruned:
        prune.remove(module, name)
    mask = module._parameters[name].detach() != 0
    if bool(mask.all()):
        return False
    parametrize.register_parametrization(module, name, ZeroMask(mask.to(module._parameters[name].dtype)))
    return True
