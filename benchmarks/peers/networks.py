"""The networks that benchmarks/peers measures, built without downloads: random weights, batch norms with real statistics."""

from __future__ import annotations

import math

import torch
from torch import nn


def settle_batch_norms(model: nn.Module, batches) -> None:
    """Gives every batch norm the mean statistics of `batches`, so that activations have the ranges of a trained network."""
    norms = [module for module in model.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the plain mean over the batches
    model.train()
    with torch.no_grad():
        for batch in batches if norms else ():
            model(batch)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    model.eval()


def signal_to_noise(reference: torch.Tensor, noisy: torch.Tensor) -> float:
    """dB of the mean-free reference over the difference; the mean would hide that an output does not depend on its input."""
    signal = (reference - reference.mean()).double().pow(2).mean()
    noise = (reference - noisy).double().pow(2).mean()
    return math.inf if noise == 0 else 10 * math.log10(signal / noise)


class PooledBert(nn.Module):
    """BERT-base as an encoder of one tensor to one tensor, which every peer can export."""

    def __init__(self):
        super().__init__()
        from transformers import BertConfig, BertModel

        self.bert = BertModel(BertConfig())

    def forward(self, input_ids):
        return self.bert(input_ids=input_ids).last_hidden_state


def _torchvision(name: str):
    import torchvision

    return getattr(torchvision.models, name)(weights=None)


def _images(batch: int, seed: int) -> torch.Tensor:
    return torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(seed))


def _tokens(batch: int, seed: int) -> torch.Tensor:
    return torch.randint(1000, 30000, (batch, 128), generator=torch.Generator().manual_seed(seed))


NETWORKS = {
    "resnet50": (lambda: _torchvision("resnet50"), _images),
    "resnet18": (lambda: _torchvision("resnet18"), _images),
    "mobilenet_v2": (lambda: _torchvision("mobilenet_v2"), _images),
    "bert_base": (PooledBert, _tokens),
}


def build(name: str) -> nn.Module:
    """The same weights in every process."""
    make, inputs = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    settle_batch_norms(model, [inputs(8, 100 + i) for i in range(4)])
    return model.eval()


def example(name: str, batch: int, seed: int = 1) -> torch.Tensor:
    return NETWORKS[name][1](batch, seed)


def calibration(name: str, batch: int) -> list[torch.Tensor]:
    return [example(name, batch, seed) for seed in range(200, 200 + max(4, 16 // batch))]
