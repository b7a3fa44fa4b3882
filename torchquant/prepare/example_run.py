"""Runs a model once on its example inputs and notes what placement needs to know: which layers ran, on which tensors,
and which functional calls read a parameter."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..trees import tensors_in
from .patterns import (
    COMPUTE_FUNCTIONS,
    FLOAT_PRODUCTS,
    LINEAR,
    ComputeFunction,
    ComputeLayer,
    compute_function,
    compute_layer,
    float_layer,
    is_matrices,
    is_matrix_layer,
    operand,
    product_operands,
)


@dataclass
class ModuleCall:
    path: str
    module: torch.nn.Module
    args: tuple
    kwargs: dict


@dataclass
class FunctionalCall:
    """F.linear(x, weight), x @ weight and their like, on a parameter of some module."""

    caller: str  # path of the module whose forward made the call
    compute: ComputeFunction
    owner: str  # path of the module that holds the parameter
    parameter: str
    input: torch.Tensor

    @property
    def path(self):
        return f"{self.owner}.{self.parameter}" if self.owner else self.parameter


@dataclass
class ProductCall:
    """torch.matmul(a, b) and its like. `operands` is None where one of them is stored or no batch of matrices."""

    caller: str  # path of the module whose forward made the call
    turn: int  # of all forwards in the run: a module may have several
    operands: tuple[torch.Tensor, torch.Tensor] | None


@dataclass
class FloatCall:
    """A functional call that is a layer and that nothing can quantize."""

    owner: str  # path of the module whose QConfig and name it has
    name: str  # of the parameter or function
    layer: ComputeLayer
    reason: str


@dataclass
class ExampleRun:
    output: object = None
    calls: list[ModuleCall] = field(default_factory=list)  # holds on to the inputs, so that no two tensors share an id
    functional_calls: list[FunctionalCall] = field(default_factory=list)
    keeps_products: bool = False
    product_calls: list[ProductCall] = field(default_factory=list)
    float_calls: list[FloatCall] = field(default_factory=list)

    def paths(self):
        return {call.path for call in self.calls}


def unpack(inputs, what="example_inputs"):
    """(args, kwargs) of a model input: a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, tuple):
        return inputs, {}
    if isinstance(inputs, Mapping):  # a dict, or what tokenizers return
        return (), dict(inputs)
    raise TypeError(
        f"{what}: expected a tensor, a tuple of arguments or a dict of keyword arguments, got {type(inputs).__name__}"
    )


@contextlib.contextmanager
def evaluating(model, training=False):
    """Puts every module in eval mode (or train mode) and gives each its own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = training
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def repeatable():
    """Runs with a fixed seed and leaves the user's random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@contextlib.contextmanager
def without_fused_attention():
    # In eval mode nn.TransformerEncoder would run fused kernels that call none of its layers and read float weights past their
    # fake-quants.
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


class _Recorder(TorchFunctionMode):
    def __init__(self, model, run):
        super().__init__()
        self.run = run
        self.running = [("", model, 0)]  # the modules whose forwards are on the stack: path, module, which forward of the run
        self.owners = {id(parameter): name.rpartition(".")[::2] for name, parameter in model.named_parameters()}
        self.derived = {}  # id of a tensor made of stored tensors alone -> (owner, name) of the first of them, the tensor
        for name, tensor in (*model.named_buffers(), *model.named_parameters()):
            self.derived[id(tensor)] = name.rpartition(".")[::2], tensor

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        caller, module, turn = self.running[-1]
        if not (compute_layer(module) or float_layer(module)):
            self._note_product(caller, turn, function, args, kwargs)
            self._note_call(caller, function, args, kwargs)
        result = function(*args, **kwargs)
        self._follow_stored(result, args, kwargs)
        return result

    def _note_product(self, caller, turn, function, args, kwargs):
        operands = product_operands(function, args, kwargs) if self.run.keeps_products else None
        if operands:
            activations = all(id(x) not in self.derived and is_matrices(x) for x in operands)
            self.run.product_calls.append(ProductCall(caller, turn, operands if activations else None))

    def _note_call(self, caller, function, args, kwargs):
        compute = compute_function(function)
        weight = operand(args, kwargs, compute.weight) if compute else None
        if id(weight) in self.owners and (function in COMPUTE_FUNCTIONS or is_matrix_layer(function, args, kwargs, weight)):
            owner, parameter = self.owners[id(weight)]
            self.run.functional_calls.append(FunctionalCall(caller, compute, owner, parameter, operand(args, kwargs, compute.input)))
        elif function in COMPUTE_FUNCTIONS:
            self._note_computed_weight(caller, function, weight, compute.layer)
        elif function in FLOAT_PRODUCTS:
            for factor in pytree.tree_leaves((args, kwargs)):
                if id(factor) in self.owners:
                    reason = f"{function.__name__} with this parameter has no integer kernel; F.linear and x @ weight have one"
                    self.run.float_calls.append(FloatCall(*self.owners[id(factor)], LINEAR, reason))

    def _note_computed_weight(self, caller, function, weight, layer):
        if id(weight) not in self.derived:
            return  # the model computes it from its input: a product of two activations, float by design
        (owner, name), _ = self.derived[id(weight)]
        reason = f"the weight of this {layer.kind} is not a parameter itself; torch.nn.utils.parametrize can make it one"
        self.run.float_calls.append(FloatCall(owner, name, layer, reason))

    def _follow_stored(self, result, args, kwargs):
        tensors = tensors_in((args, kwargs))
        if tensors and all(id(tensor) in self.derived for tensor in tensors):
            for tensor in tensors_in(result):
                self.derived.setdefault(id(tensor), (self.derived[id(tensors[0])][0], tensor))


def run_example(model, args, kwargs, *, keep_products=False):
    """Runs the model in eval mode without gradients. Nothing of the model changes but what its own forward changes.
    `keep_products` records products of activations, and keeps their operands alive."""
    run = ExampleRun(keeps_products=keep_products)
    recorder = _Recorder(model, run)

    def entered(path):
        def hook(module, args, kwargs):
            recorder.running.append((path, module, len(run.calls) + 1))
            run.calls.append(ModuleCall(path, module, args, kwargs))

        return hook

    def left(module, args, output):
        recorder.running.pop()

    hooks = []
    for path, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(entered(path), prepend=True, with_kwargs=True))
        hooks.append(module.register_forward_hook(left))
    try:
        with evaluating(model), torch.no_grad(), repeatable(), without_fused_attention(), recorder:
            run.output = model(*args, **kwargs)
    except Exception as error:
        raise RuntimeError(f"prepare: the model does not run on example_inputs: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return run
