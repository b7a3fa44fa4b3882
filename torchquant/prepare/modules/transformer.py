"""nn.TransformerEncoder and its layer: kept on the path that calls their layers.

In eval mode both may run one fused kernel on the weights of their children, past every fake-quant. Each asks an
attribute first whether it may; the mixins here answer no, and torch's own forward does the rest: the same masks,
norm_first, dropout and numbers.
"""

from torch import nn

from ..quantized_parameter import extend, recipe_of


class UnfusedEncoderLayer(nn.Module):
    @property
    def activation_relu_or_gelu(self):
        return 0  # "an activation that the fused kernel does not have"


class UnfusedEncoder(nn.Module):
    @property
    def use_nested_tensor(self):
        return False


def keep_layers_running(module):
    """Does nothing to a module none of whose layers is quantized."""
    mixin = {nn.TransformerEncoderLayer: UnfusedEncoderLayer, nn.TransformerEncoder: UnfusedEncoder}
    for cls, unfused in mixin.items():
        if isinstance(module, cls) and any(recipe_of(child) for child in module.modules()):
            extend(module, mixin=unfused)
