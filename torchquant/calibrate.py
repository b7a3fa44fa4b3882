"""Calibration: runs a prepared model over batches, so that its observers see the range of every tensor."""

import itertools
import time
from collections.abc import Mapping

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from .fake_quantize import FakeQuantize
from .prepare import PreparedModel
from .prepare.example_run import evaluating, unpack
from .prepare.quantized_parameter import weight_fake_quants

_BAR_AFTER_SECONDS = 2.0
_NONE = object()


def calibrate(prepared, batches):
    """Feeds `batches` to a prepared model and then turns its observers off and its fake-quants on.

    A batch is a tensor, a tuple of arguments or a dict of keyword arguments, as the model takes them: a tuple is never
    taken for an (input, label) pair. The model runs in eval mode without gradients. Calling this again goes on where
    the last call ended.
    """
    if not isinstance(prepared, PreparedModel):
        raise TypeError(f"calibrate: expected a model that torchquant.prepare returned, got {type(prepared).__name__}")
    batches, total = _checked(batches)
    fake_quants = named_fake_quants(prepared).values()
    flags = [fake_quant.get_extra_state() for fake_quant in fake_quants]
    try:
        _observe(prepared, fake_quants, batches, total)
        finish_calibration(prepared)
    except BaseException:
        for fake_quant, state in zip(fake_quants, flags):
            fake_quant.set_extra_state(state)
        raise


def _checked(batches):
    """(the batches, how many there are if they say so), once there is a first one and they are no single batch."""
    if batches is None or isinstance(batches, (torch.Tensor, Mapping, str)):
        raise TypeError(
            f"calibrate: batches must be an iterable of batches, such as a list or a DataLoader, got a {type(batches).__name__}; "
            "put a single batch into a list"
        )
    total = len(batches) if hasattr(batches, "__len__") else None
    batches = iter(batches)
    first = next(batches, _NONE)
    if first is _NONE:
        raise ValueError("calibrate: batches is empty; give at least one batch of typical inputs")
    return itertools.chain([first], batches), total


def _observe(prepared, fake_quants, batches, total):
    for fake_quant in fake_quants:
        fake_quant.enable_observer(True)
        fake_quant.enable_fake_quant(False)
        if fake_quant.observer is not None:
            fake_quant.observer.nonfinite_count.zero_()  # those of an earlier, refused call
    with evaluating(prepared), torch.no_grad(), _Bar(total) as bar:
        for index, batch in enumerate(batches):
            _run(prepared, index, batch)
            bar.advance(index + 1)


def finish_calibration(prepared):
    """Turns observers off and fake-quants on, once every observer has seen finite values. The ranges of weights that are
    in training go on following them."""
    fake_quants = named_fake_quants(prepared)
    broken = [name for name, fake_quant in fake_quants.items() if fake_quant.nonfinite_count]
    if broken:
        raise ValueError(
            f"calibrate: {_list(broken)} met infinite or NaN values; check the calibration batches and the float model"
        )
    unseen = [name for name, fake_quant in fake_quants.items() if not fake_quant.observed]
    if unseen:
        raise ValueError(
            f"calibrate: no batch reached {_list(unseen)}; give batches that run every layer, or keep those layers float"
        )
    followed = {fake_quant for _, _, fake_quant in weight_fake_quants(prepared)} if prepared.torchquant_training else set()
    for fake_quant in fake_quants.values():
        fake_quant.enable_fake_quant(True)
        fake_quant.enable_observer(fake_quant in followed and not fake_quant.spec.learns)


def named_fake_quants(prepared):
    """Path -> fake-quant; one that several layers share stands under its first path."""
    return {name: module for name, module in prepared.named_modules() if isinstance(module, FakeQuantize)}


def _run(prepared, index, batch):
    args, kwargs = unpack(batch, f"calibrate: batch {index}")
    try:
        prepared(*args, **kwargs)
    except Exception as error:
        hint = "; a tuple is the model's arguments: leave labels out of it" if len(args) > 1 else ""
        raise RuntimeError(f"calibrate: the model does not run on batch {index}{hint}: {error}") from error


def _list(names):
    return ", ".join(names)


class _Bar:
    """A progress bar for someone who is watching and would otherwise wait: on a terminal, from the third second on."""

    def __init__(self, total):
        self.total = total
        self.console = Console(stderr=True)
        self.started = time.monotonic()
        self.progress = None

    def __enter__(self):
        return self

    def advance(self, done):
        if self.progress is None:
            if not self.console.is_terminal or time.monotonic() - self.started < _BAR_AFTER_SECONDS:
                return
            columns = TextColumn("calibrating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self.progress = Progress(*columns, console=self.console, transient=True)
            self.task = self.progress.add_task("", total=self.total)
            self.progress.start()
        self.progress.update(self.task, completed=done)

    def __exit__(self, *error):
        if self.progress is not None:
            self.progress.stop()
