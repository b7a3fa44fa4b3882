"""The one list of what prepare knows about operations: which compute, which ride along in the same kernel, which pass
codes through.

Whatever is not listed here runs in float by design. The converter has a kernel for everything that is.
"""

import enum
import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


class Kind(enum.Enum):
    COMPUTE = "compute"  # has a weight
    NORM = "norm"  # batch norm: part of the compute layer before it, or a layer of its own on integers
    ADD = "add"
    MUL = "mul"
    MATMUL = "matmul"  # of two activations, where the QConfigMapping asks for it
    ACTIVATION = "activation"
    TABLE = "table"  # a function of one tensor: a table of codes where its input and its output are quantized
    POOL = "pool"  # averages: new qparams on the output
    CONCAT = "concat"  # all inputs and the output share one fake-quant
    SHAPE = "shape"  # moves codes and leaves their values alone
    IDENTITY = "identity"  # gone in the converted model
    METADATA = "metadata"  # reads a tensor's size or dtype, not its values
    FLOAT = "float"


@dataclass(frozen=True)
class ComputeLayer:
    kind: str
    weight_axis: int  # of the output channels
    modes: frozenset[str]  # how the kernels can run it, or how it would have to run: "static", "dynamic", "weight_only", "fp8"
    input_axis: int = -1  # of the weight: what groups of a group-wise scale run along


@dataclass(frozen=True)
class ComputeFunction:
    """A function that computes a layer, and where among its arguments the operands are: (position, name)."""

    layer: ComputeLayer
    input: tuple[int, str] = (0, "input")
    weight: tuple[int, str] = (1, "weight")
    bias: tuple[int, str] | None = (2, "bias")


_CONV = frozenset({"static"})
INTEGER_MODES = frozenset({"static", "dynamic", "weight_only"})
LINEAR = ComputeLayer("linear", 0, INTEGER_MODES | {"fp8"})
MATRIX = ComputeLayer("linear", 1, LINEAR.modes, input_axis=0)  # x @ weight, whose rows are the inputs
EMBEDDING = ComputeLayer("embedding", 0, frozenset({"weight_only"}))
COMPUTE_MODULES = {
    nn.Linear: LINEAR,
    nn.Conv1d: ComputeLayer("conv1d", 0, _CONV),
    nn.Conv2d: ComputeLayer("conv2d", 0, _CONV),
    nn.ConvTranspose1d: ComputeLayer("conv_transpose1d", 1, _CONV),
    nn.ConvTranspose2d: ComputeLayer("conv_transpose2d", 1, _CONV),
    nn.Embedding: EMBEDDING,
}
COMPUTE_FUNCTIONS = {
    F.linear: ComputeFunction(LINEAR),
    F.conv1d: ComputeFunction(COMPUTE_MODULES[nn.Conv1d]),
    F.conv2d: ComputeFunction(COMPUTE_MODULES[nn.Conv2d]),
    F.conv_transpose1d: ComputeFunction(COMPUTE_MODULES[nn.ConvTranspose1d]),
    F.conv_transpose2d: ComputeFunction(COMPUTE_MODULES[nn.ConvTranspose2d]),
    F.embedding: ComputeFunction(EMBEDDING, bias=None),
}
_MATMUL = ComputeFunction(MATRIX, (0, "input"), (1, "other"), None)
_MM = ComputeFunction(MATRIX, (0, "input"), (1, "mat2"), None)
_ADDMM = ComputeFunction(MATRIX, (1, "mat1"), (2, "mat2"), (0, "input"))
# Layers only where the second operand is a two-dimensional parameter; see is_matrix_layer.
_MATRIX_PRODUCTS = {
    torch.matmul: _MATMUL, torch.Tensor.matmul: _MATMUL, torch.Tensor.__matmul__: _MATMUL, operator.matmul: _MATMUL, "matmul": _MATMUL,
    torch.mm: _MM, torch.Tensor.mm: _MM, "mm": _MM,
    torch.addmm: _ADDMM, torch.Tensor.addmm: _ADDMM, "addmm": _ADDMM,
}  # fmt: skip
# Products that are layers too when an operand is a parameter, and that have no kernel.
FLOAT_PRODUCTS = frozenset({
    torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum, torch.mv, torch.conv3d, F.bilinear,
    torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.__rmatmul__, torch.Tensor.mm,
    torch.Tensor.bmm, torch.Tensor.addmm, torch.Tensor.mv,
})  # fmt: skip
_INPUT, _OTHER, _MAT2 = (0, "input"), (1, "other"), (1, "mat2")
# Products that a QConfigMapping can ask to quantize where both operands are activations -> the places of the operands.
_ACTIVATION_PRODUCTS = {
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, operator.matmul, "matmul"), (_INPUT, _OTHER)),
    **dict.fromkeys((torch.bmm, torch.Tensor.bmm, "bmm", torch.mm, torch.Tensor.mm, "mm"), (_INPUT, _MAT2)),
}
# Layers with weights and no integer kernel, each as a QConfig that asks for it would see it.
FLOAT_LAYERS = {
    nn.Conv3d: ComputeLayer("conv3d", 0, _CONV),
    nn.ConvTranspose3d: ComputeLayer("conv_transpose3d", 1, _CONV),
    nn.Bilinear: ComputeLayer("bilinear", 0, INTEGER_MODES),
    nn.EmbeddingBag: ComputeLayer("embedding_bag", 0, EMBEDDING.modes),
    nn.RNN: ComputeLayer("rnn", 0, INTEGER_MODES),
    nn.RNNCell: ComputeLayer("rnn_cell", 0, INTEGER_MODES),
    nn.LSTMCell: ComputeLayer("lstm_cell", 0, INTEGER_MODES),
    nn.GRUCell: ComputeLayer("gru_cell", 0, INTEGER_MODES),
}

_MODULES = {
    Kind.NORM: (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm),
    Kind.ACTIVATION: (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh),
    Kind.TABLE: (nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.Mish, nn.Softplus, nn.Softsign, nn.LogSigmoid),
    Kind.POOL: (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
    Kind.SHAPE: (nn.Flatten, nn.Unflatten, nn.MaxPool1d, nn.MaxPool2d, nn.ZeroPad1d, nn.ZeroPad2d),
    Kind.IDENTITY: (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.Identity),
}
_FUNCTIONS = {
    Kind.ADD: (operator.add, operator.iadd, torch.add),
    Kind.MUL: (operator.mul, operator.imul, torch.mul),
    Kind.ACTIVATION: (
        F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, F.hardtanh, F.hardtanh_, F.hardswish, F.hardsigmoid, F.silu, F.gelu,
        F.sigmoid, torch.sigmoid, torch.sigmoid_, F.tanh, torch.tanh, torch.tanh_,
    ),
    Kind.TABLE: (
        F.leaky_relu, F.leaky_relu_, F.elu, F.elu_, F.celu, torch.celu, F.selu, torch.selu, F.mish, F.softplus,
        F.softsign, F.logsigmoid,
    ),
    Kind.POOL: (F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, torch.adaptive_avg_pool1d, torch.mean),
    Kind.CONCAT: (torch.cat, torch.concat, torch.concatenate),
    Kind.SHAPE: (
        operator.getitem, torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.swapaxes, torch.squeeze, torch.unsqueeze,
        torch.chunk, torch.split, torch.unbind, torch.select, torch.narrow, F.max_pool1d, F.max_pool2d, torch.max_pool1d, torch.max_pool2d,
        F.pad,
    ),
    Kind.IDENTITY: (F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout),
    Kind.METADATA: (getattr,),
}  # fmt: skip
_METHODS = {
    Kind.ADD: ("add", "add_"),
    Kind.MUL: ("mul", "mul_"),
    Kind.ACTIVATION: ("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_"),
    Kind.POOL: ("mean",),
    Kind.SHAPE: (
        "view", "reshape", "flatten", "permute", "transpose", "swapaxes", "t", "squeeze", "unsqueeze", "expand", "contiguous",
        "chunk", "split", "unbind", "select", "narrow",
    ),
    Kind.METADATA: ("size", "dim", "numel", "stride", "ndimension", "type", "is_contiguous"),
}  # fmt: skip
# functions that torch.fx keeps whole and that are the identity in eval mode
_IDENTITY_BY_NAME = {"torchvision.ops.stochastic_depth.stochastic_depth"}

_FUNCTION_KINDS = {function: kind for kind, functions in _FUNCTIONS.items() for function in functions}
_METHOD_KINDS = {method: kind for kind, methods in _METHODS.items() for method in methods}


def compute_layer(module):
    """The compute layer that a module is, judged by the forward that it runs: a subclass with a forward of its own is
    not one.
    """
    for cls, layer in COMPUTE_MODULES.items():
        if runs_as(module, cls):
            return layer
    return None


def float_layer(module):
    """The entry of FLOAT_LAYERS for a module, None for any other."""
    return next((layer for cls, layer in FLOAT_LAYERS.items() if isinstance(module, cls)), None)


def compute_function(function):
    """What a function, or a method of tensors given by its name, computes; None for any that is no layer."""
    if not _hashable(function):
        return None
    return COMPUTE_FUNCTIONS.get(function) or _MATRIX_PRODUCTS.get(function)


def product_operands(function, arguments, keywords):
    """Both operands of a matrix product, given by its function or by its name as a method; None for anything else."""
    places = _ACTIVATION_PRODUCTS.get(function) if _hashable(function) else None
    return places and tuple(operand(arguments, keywords, place) for place in places)


def is_matrices(value):
    """Whether a value is a float tensor [..., rows, columns]."""
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() >= 2


def with_product_operands(function, arguments, keywords, values):
    """(arguments, keywords) with other operands."""
    for place, value in zip(_ACTIVATION_PRODUCTS[function], values):
        arguments, keywords = with_operand(arguments, keywords, place, value)
    return arguments, keywords


def is_matrix_layer(function, arguments, keywords, weight):
    """Whether a product with the parameter `weight` is a layer that the kernels run: all of x @ weight, plain or with a bias."""
    compute = compute_function(function)
    scaled = any(keywords.get(name, 1) != 1 for name in ("alpha", "beta")) or "out" in keywords
    return compute is not None and compute.layer is MATRIX and weight.dim() == 2 and not scaled


def operand(arguments, keywords, place):
    """The argument at a ComputeFunction's `input` or `weight`."""
    position, name = place
    return arguments[position] if len(arguments) > position else keywords.get(name)


def with_operand(arguments, keywords, place, value):
    """(arguments, keywords) with another value there."""
    position, name = place
    if len(arguments) > position:
        return (*arguments[:position], value, *arguments[position + 1 :]), keywords
    return arguments, {**keywords, name: value}


def runs_as(module, cls):
    """Whether a module is a `cls` that has not been given another forward."""
    return isinstance(module, cls) and type(module).forward is cls.forward


def kind_of_module(module):
    if compute_layer(module):
        return Kind.COMPUTE
    if isinstance(module, nn.Upsample):
        return kind_of_resize(mode=module.mode)
    for kind, classes in _MODULES.items():
        if isinstance(module, classes):
            return kind if _passes_codes(kind, vars(module)) else Kind.FLOAT
    return Kind.FLOAT


def kind_of_function(function, arguments, keywords):
    if function in COMPUTE_FUNCTIONS:
        return Kind.COMPUTE  # the matrix products are judged by their operands
    if f"{getattr(function, '__module__', None)}.{getattr(function, '__name__', None)}" in _IDENTITY_BY_NAME:
        return Kind.IDENTITY
    kind = _FUNCTION_KINDS.get(function, Kind.FLOAT) if _hashable(function) else Kind.FLOAT
    if function is F.interpolate:
        return kind_of_resize(**dict(zip(("size", "scale_factor", "mode"), arguments[1:4])), **keywords)
    if function is F.pad and not _pads_with_zero(
        *arguments[2:], **{k: v for k, v in keywords.items() if k in ("mode", "value")}
    ):
        return Kind.FLOAT
    return kind if _passes_codes(kind, keywords) else Kind.FLOAT


def kind_of_resize(mode="nearest", antialias=False, **_):
    """Nearest resize moves codes; a linear one averages neighbours, like a pool."""
    if antialias:
        return Kind.FLOAT
    return {"nearest": Kind.SHAPE, "linear": Kind.POOL, "bilinear": Kind.POOL}.get(mode, Kind.FLOAT)


def kind_of_method(name, keywords):
    kind = _METHOD_KINDS.get(name, Kind.FLOAT)
    return kind if _passes_codes(kind, keywords) else Kind.FLOAT


def _passes_codes(kind, settings):
    """False for the settings of an operation that leave its kernel: a scaled add, pooling that returns indices."""
    if kind is Kind.SHAPE:
        return not settings.get("return_indices") and settings.get("mode", "nearest") in ("nearest", "constant")
    if kind is Kind.ADD:
        return settings.get("alpha", 1) == 1
    return "dtype" not in settings and "out" not in settings


def _pads_with_zero(mode="constant", value=None):
    return mode == "constant" and not value


def _hashable(function):
    try:
        hash(function)
    except TypeError:
        return False
    return True


def averages_space(dims, rank):
    """Whether a mean over these dimensions is an average pool: all spatial dimensions of (N, C, L) or (N, C, H, W)."""
    dims = (dims,) if isinstance(dims, int) else dims
    if rank not in (3, 4) or not isinstance(dims, (tuple, list)) or not all(isinstance(dim, int) for dim in dims):
        return False
    return sorted(dim % rank for dim in dims) == list(range(2, rank))
