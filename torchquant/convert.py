"""convert: a prepared model in, a QuantizedModel out; quantize_model: prepare, calibrate and convert at once."""

from __future__ import annotations

import torch
from torch.utils import _pytree as pytree

from torchquant import _C
from torchquant.progress import ProgressBar
from torchquant.quantized_model import QuantizedModel
from torchquant.receipt import Receipt
from torchquant.tracing import Trace

ON_FALLBACK = ("error", "allow")

# Rounding at ties moves an output by 1e-7 to 1e-2 of its size, in deep networks of random weights by up to a tenth; a wrong
# graph by about 1.
MAX_DRIFT = 0.5


def convert(
    prepared: torch.nn.Module, example_inputs, on_fallback: str = "error", *, fixed_shapes: bool = False, max_drift: float = MAX_DRIFT
) -> QuantizedModel:
    """Turns a prepared and calibrated (or trained) model into one that computes on integers.

    `example_inputs` is a tensor, a tuple of arguments or a dict of keyword arguments. Arguments that are no tensors are fixed at
    their example value and leave the signature; dict, list and dataclass outputs become tuples. The model given is not changed.

    A layer that was asked to be quantized and cannot be lowered raises one error that lists all of them; with
    ``on_fallback="allow"`` it stays float and the receipt says why. The model must run the same traced and untraced at two batch
    sizes and, where an input has one, two sequence lengths; ``fixed_shapes=True`` asks for the example's shapes alone.

    The result is run beside the fake-quantized model on those inputs: outputs whose relative difference exceeds ``max_drift``
    are an error. Only a model that turns the last bit of its activations into another answer has a use for a larger one.
    """
    check_on_fallback(on_fallback)
    trace = Trace(prepared, example_inputs, fixed_shapes)
    model = convert_script(trace.script, on_fallback)
    model.checks = trace.checks
    model.argument_names, model.fixed_arguments = trace.argument_names, trace.fixed_arguments
    with ProgressBar("checking the converted model", len(trace.checked)) as bar:
        for inputs, expected in reversed(trace.checked):  # the example's own drift is the one that stays
            model.drift = _drift(expected, model.script(*inputs))
            if model.drift["relative"] > max_drift:
                raise RuntimeError(
                    f"convert: the converted model's outputs differ from the fake-quantized model's by {model.drift['relative']:.2g} "
                    f"of their norm, and max_drift allows {max_drift:g}; please report this"
                )
            bar.advance()
    return model


def convert_script(prepared: torch.jit.ScriptModule, on_fallback: str = "error") -> QuantizedModel:
    """The converter alone, on a prepared model that is TorchScript already."""
    check_on_fallback(on_fallback)
    with ProgressBar("converting"):
        module, receipt_json = _C.convert(prepared._c, on_fallback)
    return QuantizedModel(torch.jit._recursive.wrap_cpp_module(module), Receipt.from_json(receipt_json))


def quantize_model(
    model: torch.nn.Module, example_inputs, qconfig, calibration=None, *, on_fallback: str = "error", fixed_shapes: bool = False
) -> QuantizedModel:
    """Prepare, calibrate on the batches of `calibration` and convert. Dynamic and weight-only configurations need no `calibration`."""
    from torchquant.calibrate import calibrate
    from torchquant.prepare import prepare

    check_on_fallback(on_fallback)
    prepared = prepare(model, example_inputs, qconfig)
    if calibration is not None:
        calibrate(prepared, calibration)
    return convert(prepared, example_inputs, on_fallback, fixed_shapes=fixed_shapes)


def check_on_fallback(on_fallback: str) -> None:
    if on_fallback not in ON_FALLBACK:
        raise ValueError(f"convert: on_fallback must be one of {', '.join(map(repr, ON_FALLBACK))}; got {on_fallback!r}")


def _drift(expected, actual) -> dict[str, float]:
    """How far the converted model's outputs are from the fake-quantized model's, over all floating-point outputs together."""
    expected, actual = pytree.tree_leaves(expected), pytree.tree_leaves(actual)
    shapes = [list(leaf.shape) for leaf in expected], [list(leaf.shape) for leaf in actual]
    if shapes[0] != shapes[1]:
        raise RuntimeError(f"convert: the converted model returns shapes {shapes[1]}, the model returns {shapes[0]}; please report this")
    pairs = [(e.double().flatten(), a.double().flatten()) for e, a in zip(expected, actual) if e.is_floating_point()]
    if not pairs:
        return {"max_abs": 0.0, "relative": 0.0}
    reference, result = (torch.cat(leaves) for leaves in zip(*pairs))
    if not torch.equal(reference.isfinite(), result.isfinite()):
        raise RuntimeError("convert: the converted model returns NaN or infinity where the model does not; please report this")
    difference = (result - reference)[reference.isfinite()]
    norm = reference[reference.isfinite()].norm().item()
    return {"max_abs": difference.abs().max().item() if difference.numel() else 0.0,
            "relative": difference.norm().item() / norm if norm else 0.0}  # fmt: skip
