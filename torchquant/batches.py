"""How every function that takes `batches` reads them: checked before work starts, one error for a batch that does not run."""

import itertools
from collections.abc import Iterable, Iterator, Mapping

import torch

from .prepare.example_run import evaluating, unpack
from .progress import ProgressBar
from .trees import tensors_in

_NONE = object()


def check_iterable(batches, caller, *, repeatable=False):
    """Refuses a single batch, and a generator where batches are read more than once: it would be empty the second time."""
    if isinstance(batches, (torch.Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        raise TypeError(
            f"{caller}: batches must be an iterable of batches, such as a list or a DataLoader, got a {type(batches).__name__}; "
            "put a single batch into a list"
        )
    if repeatable and isinstance(batches, Iterator):
        raise TypeError(
            f"{caller}: batches are read more than once, so they must be a list or a DataLoader, got a {type(batches).__name__}"
        )


def checked_batches(batches, caller):
    """(the batches, how many there are if they say so), once there is a first one and they are no single batch."""
    check_iterable(batches, caller)
    total = len(batches) if hasattr(batches, "__len__") else None
    batches = iter(batches)
    first = next(batches, _NONE)
    if first is _NONE:
        raise ValueError(f"{caller}: batches is empty; give at least one batch of typical inputs")
    return itertools.chain([first], batches), total


def run_model(model, index, batch, caller):
    """The model's output for one batch: a tensor, a tuple of arguments or a dict of keyword arguments."""
    args, kwargs = unpack(batch, f"{caller}: batch {index}")
    try:
        return model(*args, **kwargs)
    except Exception as error:
        hint = "; a tuple is the model's arguments: leave labels out of it" if len(args) > 1 else ""
        raise RuntimeError(f"{caller}: the model does not run on batch {index}{hint}: {error}") from error


def run_batches(model, batches, caller, doing):
    """Runs the model in eval mode without gradients under a progress bar; yields each batch after it ran."""
    batches, total = checked_batches(batches, caller)
    with evaluating(model), torch.no_grad(), ProgressBar(doing, total) as bar:
        for index, batch in enumerate(batches):
            run_model(model, index, batch, caller)
            yield batch
            bar.advance()


def samples_in(batch):
    """The size of the first dimension of a batch's first tensor."""
    return next((len(tensor) for tensor in tensors_in(batch) if tensor.dim()), 1)
