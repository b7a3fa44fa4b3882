"""What nested containers hold: the inputs and outputs of models. Used wherever a function takes or compares them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch.utils import _pytree as pytree


def leaves(tree) -> Iterator:
    """What pytree finds, and what the dataclasses hold that it was not told of."""
    for leaf in pytree.tree_leaves(tree):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            yield from leaves([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])
        else:
            yield leaf


def tensors_in(tree) -> list[torch.Tensor]:
    return [leaf for leaf in leaves(tree) if isinstance(leaf, torch.Tensor)]
