"""Traces a prepared model into the TorchScript graph that the converter reads, and checks the trace against the model itself."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import pathlib
import types
import warnings
from collections.abc import Mapping

import torch
from torch.utils import _pytree as pytree

from torchquant.calibrate import check_calibrated, static_fake_quants
from torchquant.errors import first_line, last_line
from torchquant.fake_quantize import FakeQuantize
from torchquant.prepare import PreparedModel, observe_weights
from torchquant.prepare.example_run import repeatable, unpack, without_fused_attention
from torchquant.progress import ProgressBar


def trace(prepared: torch.nn.Module, example_inputs, *, fixed_shapes: bool = False) -> torch.jit.ScriptModule:
    """The prepared model as TorchScript, on the CPU in fp32 and eval mode: what `torchquant convert` and C++ convert.

    The trace must agree with the model at two batch sizes and, where an input has one, two sequence lengths, unless
    `fixed_shapes` says that only the shapes of `example_inputs` matter.
    """
    return Trace(prepared, example_inputs, fixed_shapes).script


class Trace:
    """A CPU fp32 copy of the prepared model with a flat interface, its TorchScript, and the inputs on which both agree.

    Arguments that are no tensors are fixed at their example value and leave the signature; dict, list and dataclass outputs
    become tuples, without their Nones.
    """

    def __init__(self, prepared: torch.nn.Module, example_inputs, fixed_shapes: bool = False):
        args, kwargs = unpack(example_inputs)
        self.model = _evaluation_copy(prepared)
        # names of forward's positional arguments, and the values at which those that are no tensors are fixed
        self.argument_names, self.fixed_arguments = _arguments(self.model, args, kwargs)
        self.inputs = give_flat_interface(self.model, args, kwargs)
        self.checks: list[dict] = []  # what was compared or skipped, for the user
        self.checked: list[tuple] = []  # (inputs, what the model gives for them)
        with ProgressBar("tracing"):
            self.script = self._trace()
            self._check("example_inputs", self.inputs, self.run_model(self.inputs), "holds data-dependent Python control flow or randomness")
            if not fixed_shapes:
                self._check_batch_size()
                self._check_lengths()

    def run_model(self, inputs: tuple):
        with torch.no_grad(), repeatable(), without_fused_attention():
            return self.model(*_clones(inputs))

    def run_script(self, inputs: tuple):
        # The optimising executor may fuse; as written, the trace runs the very ops of the model.
        with torch.no_grad(), repeatable(), torch.jit.optimized_execution(False):
            return self.script(*_clones(inputs))

    def _trace(self) -> torch.jit.ScriptModule:
        noting = warnings.catch_warnings(record=True)
        with torch.no_grad(), repeatable(), without_fused_attention(), _inlined_functions(), noting as noted:
            # The tracer's guesses about baked-in sizes are answered by our checks; its deprecation is not the user's matter.
            warnings.simplefilter("always")
            script = torch.jit.trace(self.model, self.inputs, check_trace=False, strict=False)
        _warn_of_decisions(noted)
        _leave_float_layers(script, self.model)
        return script

    def _check_batch_size(self) -> None:
        size = _size(self.inputs, 0)
        if size is None:
            self.checks.append({"check": "batch size", "skipped": "the first input has no dimensions"})
            return
        self._check_resized("batch size", 0, size, size + 1)

    def _check_lengths(self) -> None:
        for dim in _length_dims(self.inputs):
            size = _size(self.inputs, dim)
            # Shorter rather than longer: position embeddings end somewhere.
            self._check_resized(f"dimension {dim}", dim, size, size - 1 if size > 1 else size + 1)

    def _check_resized(self, what: str, dim: int, size: int, new_size: int) -> None:
        inputs = _resized(self.inputs, dim, size, new_size)
        try:
            expected = self.run_model(inputs)
        except Exception as error:  # the model's own limit, whatever it raises
            self.checks.append({"check": what, "skipped": f"the model takes only {size}: {first_line(error)}"})
            return
        self._check(what, inputs, expected, f"fixes the {what} at {size}, while the model also runs with {new_size}; pass fixed_shapes=True "
                    "if only the example's shapes matter")

    def _check(self, what: str, inputs: tuple, expected, blame: str) -> None:
        try:
            actual = self.run_script(inputs)
        except RuntimeError as error:
            raise ValueError(f"convert: the trace of the model {blame} (running it failed: {last_line(error)})") from error
        if not _same(expected, actual):
            raise ValueError(f"convert: the trace of the model {blame} (its results differ from the model's)")
        self.checks.append({"check": what, "shapes": [list(leaf.shape) for leaf in pytree.tree_leaves(inputs)]})
        self.checked.append((inputs, expected))


class _NoBackward(types.SimpleNamespace):
    """What the forward of a torch.autograd.Function gets for its context where no backward follows."""

    def _ignored(self, *args) -> None:
        pass

    save_for_backward = save_for_forward = mark_dirty = mark_non_differentiable = set_materialize_grads = _ignored


@contextlib.contextmanager
def _inlined_functions():
    """A torch.autograd.Function written in Python runs its forward alone, so that the trace holds the ops in it and not a call of
    Python, which no TorchScript file can store."""
    function = torch.autograd.Function
    original = function.__dict__["apply"]

    def apply(cls, *args, **kwargs):
        if cls.setup_context is not function.setup_context:
            return cls.forward(*args, **kwargs)
        return cls.forward(_NoBackward(needs_input_grad=(False,) * len(args)), *args, **kwargs)

    function.apply = classmethod(apply)
    try:
        yield
    finally:
        function.apply = original


def _warn_of_decisions(noted: list[warnings.WarningMessage]) -> None:
    """What no check with other sizes finds: a branch that depends on the values of a tensor."""
    own = (str(pathlib.Path(torch.__file__).parent), str(pathlib.Path(__file__).parent))
    lines = [
        f"{warning.filename}:{warning.lineno}" for warning in noted
        if issubclass(warning.category, torch.jit.TracerWarning) and "Python boolean" in str(warning.message)
        and not warning.filename.startswith(own)
    ]  # fmt: skip
    if lines:
        warnings.warn(
            f"convert: the model decides by a tensor at {', '.join(dict.fromkeys(lines))}; the converted model always takes the way that "
            "example_inputs took. That is right where the decision depends on sizes that were checked or never change",
            stacklevel=4,
        )


def _evaluation_copy(prepared: torch.nn.Module) -> torch.nn.Module:
    if sharded := next((name for name, parameter in prepared.named_parameters() if hasattr(parameter, "device_mesh")), None):
        raise ValueError(
            f"convert: {sharded} is sharded over processes (fully_shard); gather the state by "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict with StateDictOptions(full_state_dict=True), load it into a "
            "model that is prepared the same way, and convert that"
        )
    model = copy.deepcopy(prepared).to("cpu").float().eval()
    fake_quants = {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantize)}
    if not fake_quants:
        raise ValueError(f"convert: {type(prepared).__name__} holds no fake-quant; make one with torchquant.prepare or prepare_qat")
    _check_observed(fake_quants)
    _check_calibration_ran(model)
    for fake_quant in fake_quants.values():
        fake_quant.enable_fake_quant(True)
    for module in list(model.modules()):
        if isinstance(module, PreparedModel):
            observe_weights(module)
    for fake_quant in fake_quants.values():
        fake_quant.enable_observer(False)
    return model


def _check_observed(fake_quants: dict[str, FakeQuantize]) -> None:
    unseen = [name for name, fake_quant in fake_quants.items() if not fake_quant.observed]
    if unseen:
        raise ValueError(f"convert: these fake-quants have seen no data, run torchquant.calibrate first: {', '.join(unseen)}")
    broken = [name for name, fake_quant in fake_quants.items() if fake_quant.nonfinite_count]
    if broken:
        raise ValueError(
            f"convert: {', '.join(broken)} met infinite or NaN values in calibration or training; check data and model, "
            "then run torchquant.calibrate on finite batches"
        )


def _check_calibration_ran(model: torch.nn.Module) -> None:
    """Observers are on from prepare on, so that trying the model out once looks like calibration on one batch. (In training they are
    on by design, and fake-quants that somebody switched off after calibration count as on.)"""
    for module in model.modules():
        if isinstance(module, PreparedModel) and not module.torchquant_training:
            if any(fake_quant.observer_enabled and not fake_quant.fake_quant_enabled for fake_quant in static_fake_quants(module).values()):
                check_calibrated(module, "convert")


def _leave_float_layers(script: torch.jit.ScriptModule, model: torch.nn.Module) -> None:
    """Writes what prepare said of float layers where the converter reads it: it sees the graph alone, in Python and in C++."""
    layers = {
        f"{path}.{name}" if path else name: entry
        for path, module in model.named_modules()
        if isinstance(module, PreparedModel)
        for name, entry in module.torchquant_float_layers.items()
    }
    text = torch._C.StringType.get()
    type_of_layers = torch._C.DictType(text, torch._C.ListType(text))
    script._c._register_attribute("torchquant_float_layers", type_of_layers, layers)


def _arguments(model: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[list[str], dict]:
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    kinds = {name: parameter.kind for name, parameter in bound.signature.parameters.items()}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    fixed = {name: value for name, value in bound.arguments.items() if kinds[name] not in variadic and not _holds_tensors(value)}
    if any(kinds[name] is inspect.Parameter.VAR_POSITIONAL and value for name, value in bound.arguments.items()):
        return [], fixed  # those that are tensors get names of our own
    return [name for name, kind in kinds.items() if kind not in (*variadic, inspect.Parameter.KEYWORD_ONLY)], fixed


def give_flat_interface(model: torch.nn.Module, args: tuple, kwargs: dict) -> tuple:
    """Makes `model.forward` take only tensors (or nested tuples of them), by name, and return only tuples. Returns those tensors.

    By a subclass, not by a module around it, because the converter names layers by their path from the root.
    """
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    order = list(bound.signature.parameters)
    named = sorted(kwargs, key=lambda name: order.index(name) if name in order else len(order))  # stable: variadic ones as given
    arguments = {**dict(zip(_positional_names(bound), args)), **{name: kwargs[name] for name in named}}
    traced = {name: _as_evaluation_input(value) for name, value in arguments.items() if _holds_tensors(value)}
    base = type(model)

    def forward(self, *tensors):
        values = {**arguments, **dict(zip(traced, tensors))}
        positional = [values.pop(name) for name in list(arguments)[: len(args)]]
        return flat_output(base.forward(self, *positional, **values))

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *traced)]
    forward.__signature__ = inspect.Signature(parameters)
    model.__class__ = type(base.__name__, (base,), {"forward": forward, "__module__": base.__module__})
    return tuple(traced.values())


def _positional_names(bound: inspect.BoundArguments) -> list[str]:
    names = []
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{name}_{i}" for i in range(len(value))]
        elif kind is not inspect.Parameter.VAR_KEYWORD:
            names.append(name)
    return names


def _holds_tensors(value) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value))


def _as_evaluation_input(value):
    def move(leaf):
        if not isinstance(leaf, torch.Tensor):
            raise TypeError(f"convert: an argument mixes tensors and {type(leaf).__name__}; TorchScript takes tensors and tuples of them")
        leaf = leaf.detach().to("cpu")
        return leaf.float() if leaf.is_floating_point() else leaf

    return pytree.tree_map(move, value)


def flat_output(output):
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, Mapping):
        values = output.values()
    elif dataclasses.is_dataclass(output):
        values = [getattr(output, field.name) for field in dataclasses.fields(output)]
    elif isinstance(output, (tuple, list)):
        values = output
    else:
        raise TypeError(
            f"convert: the model returns {type(output).__name__}; allowed are tensors and tuples, lists, dicts and dataclasses of them"
        )
    return tuple(flat_output(value) for value in values if value is not None)


def _clones(inputs: tuple) -> tuple:
    return pytree.tree_map(torch.clone, inputs)


def _size(inputs: tuple, dim: int) -> int | None:
    """Size of `dim` in the first tensor that has it."""
    return next((leaf.size(dim) for leaf in pytree.tree_leaves(inputs) if leaf.dim() > dim), None)


def _length_dims(inputs: tuple) -> list[int]:
    """Dimensions that may be a sequence length: the second of token ids, the inner two of a three-dimensional input."""
    leaf = pytree.tree_leaves(inputs)[0]
    if leaf.dim() == 3:
        return [1, 2]
    return [1] if leaf.dim() == 2 and not leaf.is_floating_point() else []


def _resized(inputs: tuple, dim: int, size: int, new_size: int) -> tuple:
    """Every tensor whose `dim` is `size` long, cut or repeated to `new_size`."""

    def resize(leaf):
        if leaf.dim() <= dim or leaf.size(dim) != size:
            return leaf
        return leaf.index_select(dim, torch.arange(new_size) % size)

    return pytree.tree_map(resize, inputs)


def _same(expected, actual) -> bool:
    expected, actual = pytree.tree_leaves(expected), pytree.tree_leaves(actual)
    return len(expected) == len(actual) and all(
        a.shape == e.shape and a.dtype == e.dtype and torch.allclose(a, e, rtol=1e-5, atol=1e-6, equal_nan=True)
        for e, a in zip(expected, actual)
    )
