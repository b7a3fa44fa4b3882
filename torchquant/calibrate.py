"""Calibration: runs a prepared model over batches, so that its observers see the range of every tensor."""

import torch

from .batches import checked_batches, run_model
from .fake_quantize import FakeQuantize
from .prepare import check_prepared
from .prepare.example_run import evaluating
from .prepare.quantized_parameter import weight_fake_quants
from .progress import ProgressBar


def calibrate(prepared, batches):
    """Feeds `batches` to a prepared model and then turns its observers off and its fake-quants on.

    A batch is a tensor, a tuple of arguments or a dict of keyword arguments, as the model takes them: a tuple is never
    taken for an (input, label) pair. The model runs in eval mode without gradients. Calling this again goes on where
    the last call ended.
    """
    check_prepared("calibrate", prepared)
    batches, total = checked_batches(batches, "calibrate")
    fake_quants = named_fake_quants(prepared).values()
    flags = [fake_quant.get_extra_state() for fake_quant in fake_quants]
    try:
        _observe(prepared, fake_quants, batches, total)
        finish_calibration(prepared)
    except BaseException:
        for fake_quant, state in zip(fake_quants, flags):
            fake_quant.set_extra_state(state)
        raise


def _observe(prepared, fake_quants, batches, total):
    for fake_quant in fake_quants:
        fake_quant.enable_observer(True)
        fake_quant.enable_fake_quant(False)
        if fake_quant.observer is not None:
            fake_quant.observer.nonfinite_count.zero_()  # those of an earlier, refused call
    with evaluating(prepared), torch.no_grad(), ProgressBar("calibrating", total) as bar:
        for index, batch in enumerate(batches):
            run_model(prepared, index, batch, "calibrate")
            bar.advance()


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


def check_calibrated(prepared, caller):
    """Refuses a prepared model that does not quantize yet. One that only ran has ranges, but those of whatever it ran on."""
    off = {name: fake_quant for name, fake_quant in static_fake_quants(prepared).items() if not fake_quant.fake_quant_enabled}
    waiting = off or {name: fake_quant for name, fake_quant in named_fake_quants(prepared).items() if not fake_quant.observed}
    if waiting:
        name, first = next(iter(waiting.items()))
        why = "has the range of whatever the model ran on since it was prepared" if first.observed else "has no range"
        raise ValueError(f"{caller}: the model is not calibrated, run torchquant.calibrate first ({name} {why})")


def named_fake_quants(prepared):
    """Path -> fake-quant; one that several layers share stands under its first path."""
    return {name: module for name, module in prepared.named_modules() if isinstance(module, FakeQuantize)}


def static_fake_quants(prepared):
    """Path -> the activation fake-quants that hold one range for a tensor."""
    weights = {id(fake_quant) for _, _, fake_quant in weight_fake_quants(prepared)}
    fake_quants = named_fake_quants(prepared).items()
    return {name: fake_quant for name, fake_quant in fake_quants if not fake_quant.spec.dynamic and id(fake_quant) not in weights}


def _list(names):
    return ", ".join(names)
