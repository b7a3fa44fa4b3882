"""Batch norm statistics that stay put while the rest of the model trains."""

from torch import nn

from .quantized_parameter import extend, recipe_of, withdraw


class FrozenStatistics(nn.Module):
    """Mixed into a batch norm: it normalizes with its running statistics and leaves them alone, whatever train() says."""

    def train(self, mode=True):
        return super().train(False)


def freeze_batch_norm(model, frozen=True):
    """Freezes the running statistics of every batch norm in `model` (gamma and beta still train), or lets them move
    again.

    Late in quantization-aware training the statistics should stop following each batch. The setting survives
    model.train().
    """
    for module in model.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if frozen:
            extend(module, mixin=FrozenStatistics)
            module.train(False)
        elif recipe_of(module) is not None and FrozenStatistics in recipe_of(module).mixins:
            withdraw(module, FrozenStatistics)
            module.train(model.training)
    return model
