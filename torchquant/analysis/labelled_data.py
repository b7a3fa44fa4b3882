"""The user's labelled data in one form, with one sentence for each way in which it can be wrong. Used by validate."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.utils import _pytree as pytree

from torchquant.prepare.example_run import unpack
from torchquant.trees import tensors_in

_FORMS = "give an iterable of (inputs, labels) batches, such as a DataLoader, or one (inputs, labels) tuple with everything"


@dataclass
class LabelledBatch:
    index: int
    args: tuple
    kwargs: dict
    labels: object
    size: int  # samples: the first dimension of the inputs

    def shapes(self) -> str:
        return ", ".join(str(list(leaf.shape)) for leaf in tensors_in((self.args, self.kwargs)))


def labelled_batches(data, batch_size: int) -> tuple[Iterator[LabelledBatch], int | None]:
    """(the batches, how many there are if they say so). One (inputs, labels) tuple is cut into batches of `batch_size`."""
    if _is_whole(data):
        whole = _checked(0, data)
        starts = range(0, whole.size, batch_size)
        return (_cut(whole, index, start, batch_size) for index, start in enumerate(starts)), len(starts)
    if isinstance(data, (torch.Tensor, Mapping, str)) or not isinstance(data, Iterable):
        raise TypeError(f"validate: data is a {type(data).__name__}; {_FORMS}")
    total = len(data) if hasattr(data, "__len__") else None
    batches = iter(data)
    first = next(batches, None)
    if first is None:
        raise ValueError(f"validate: data is empty; {_FORMS}")
    return (_checked(index, batch) for index, batch in enumerate(itertools.chain([first], batches))), total


def _is_whole(data) -> bool:
    # A tuple of batches holds tuples where this one holds its labels.
    return isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], torch.Tensor)


def _checked(index: int, batch) -> LabelledBatch:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        got = f"{len(batch)} things" if isinstance(batch, (tuple, list)) else f"a {type(batch).__name__}"
        raise ValueError(f"validate: batch {index} of data must be (inputs, labels), got {got}; several inputs go into one tuple or dict")
    inputs, labels = batch
    args, kwargs = unpack(tuple(inputs) if isinstance(inputs, list) else inputs, f"validate: the inputs of batch {index}")
    leaves = tensors_in((args, kwargs))
    if not leaves or leaves[0].dim() == 0:
        raise ValueError(f"validate: the inputs of batch {index} hold no tensor with a batch dimension")
    size = leaves[0].size(0)
    if size == 0:
        raise ValueError(f"validate: batch {index} of data is empty (inputs of shape {list(leaves[0].shape)})")
    if isinstance(labels, torch.Tensor) and (labels.dim() == 0 or labels.size(0) != size):
        raise ValueError(f"validate: batch {index} has {size} samples and labels of shape {list(labels.shape)}; each sample needs one label")
    return LabelledBatch(index, args, kwargs, labels, size)


def _cut(batch: LabelledBatch, index: int, start: int, size: int) -> LabelledBatch:
    size = min(size, batch.size - start)
    args, kwargs, labels = narrowed((batch.args, batch.kwargs, batch.labels), batch.size, start, size)
    return LabelledBatch(index, args, kwargs, labels, size)


def narrowed(tree, size: int, start: int, length: int):
    """Every tensor of `tree` whose first dimension is `size` long, cut to [start, start + length)."""

    def cut(leaf):
        whole = isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and leaf.size(0) == size
        return leaf.narrow(0, start, length) if whole else leaf

    return pytree.tree_map(cut, tree)
