"""split_outlier_channels: halves the channels that stretch a tensor's range, without changing what the model computes."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from torchquant.batches import check_iterable, run_batches
from torchquant.methods import homogeneous
from torchquant.methods.checks import check_float_model
from torchquant.methods.clipping import OUTLIER_FACTOR, median_magnitude
from torchquant.methods.report import MethodReport
from torchquant.observers import make_observer
from torchquant.prepare import fx_trace
from torchquant.prepare.example_run import evaluating, repeatable, run_example, unpack
from torchquant.prepare.patterns import averages_space
from torchquant.qconfig import QuantSpec

_METHOD = "split_outlier_channels"
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_FLATTENING = {torch.flatten, "flatten", "view", "reshape"}


def split_outlier_channels(
    model: nn.Module, example_inputs, batches, *, expand_ratio: float = 0.05, outlier_factor: float = OUTLIER_FACTOR
) -> nn.Module:
    """Outlier channel splitting of activations: Zhao et al., "Improving neural network quantization without retraining using outlier
    channel splitting" (ICML 2019).

    Where a few channels of a layer's input are far larger than the others, each such channel is computed twice at half its size, and
    the layer adds both up: the tensor's range shrinks and the function stays. The layer that produces the tensor gets the additional
    output channels, so nothing new runs between the two and integers flow as before; both layers grow by at most `expand_ratio`.

    A tensor can be split where one convolution or linear layer produces it, one reads it, and only a batch norm, ReLU, pooling,
    dropout or flattening stands between. Where an outlier cannot be split, the result says why; `ClippingReport.keep_float` keeps such
    layers float.

    Args:
        model: the float model, which torch.fx must be able to trace. It is not changed.
        example_inputs: as for `prepare`.
        batches: an iterable of batches, as for `calibrate`: they show how large each channel becomes.
        expand_ratio: at most this share of a tensor's channels is added, but at least one channel.
        outlier_factor: channels are split while the largest one's magnitude exceeds this many times the median channel's.

    Returns:
        A changed copy. The newest entry of its ``torchquant_methods`` is the report, with a row per layer that has outliers in its input:
        the layer whose output channels were doubled (``producer``), ``channels`` (one that was split twice stands twice), the largest
        magnitude before and after, or the reason why nothing was split.

    Raises:
        TypeError, ValueError: for arguments out of range, batches that are none, or a model that cannot be traced.
        RuntimeError: for a batch on which the model does not run.
    """
    if not 0 < expand_ratio <= 1:
        raise ValueError(f"{_METHOD}: expand_ratio must be in (0, 1], got {expand_ratio!r}")
    if not outlier_factor >= 1:
        raise ValueError(f"{_METHOD}: outlier_factor must be at least 1, got {outlier_factor!r}")
    check_float_model(_METHOD, model)
    check_iterable(batches, _METHOD)
    chains = _find_chains(model, example_inputs)
    magnitudes = _magnitudes(model, batches, [chain.layer for chain in chains])
    split = copy.deepcopy(model)
    report = MethodReport(_METHOD, {"expand_ratio": expand_ratio, "outlier_factor": outlier_factor})
    for chain in chains:
        if chain.layer not in magnitudes:  # no batch reached it
            continue
        absmax = chain.per_channel(magnitudes[chain.layer])
        sources, divisors = _plan(absmax, expand_ratio, outlier_factor)
        if len(sources) == len(absmax):
            continue
        if chain.reason:
            report.add(chain.layer, chain.reason, producer=None, channels=[], absmax_before=max(absmax), absmax_after=max(absmax))
            continue
        _split(split, chain, sources, divisors)
        after = max(absmax[source] / divisor for source, divisor in zip(sources, divisors))
        report.add(chain.layer, producer=chain.producer, channels=sources[len(absmax) :], absmax_before=max(absmax), absmax_after=after)
    _check_same(model, split, example_inputs)
    report.attach_to(split)
    return split


@dataclass
class _Chain:
    """A layer and the one that produces its input."""

    layer: str
    producer: str | None = None
    norm: str | None = None  # a batch norm on the way
    channels: int = 0
    inputs_per_channel: int = 1  # of the layer: more than one where an image is flattened
    reason: str = ""  # why its channels cannot be split

    def per_channel(self, absmax: list[float]) -> list[float]:
        """Largest magnitude per channel of the producer, from those per input of the layer."""
        step = self.inputs_per_channel
        return [max(absmax[i : i + step]) for i in range(0, len(absmax), step)]


def _find_chains(model: nn.Module, example_inputs) -> list[_Chain]:
    """A chain per convolution and linear layer."""
    args, kwargs = unpack(example_inputs)
    scratch = copy.deepcopy(model)
    try:
        graph = fx_trace.trace(scratch, run_example(scratch, args, kwargs), args, kwargs)
    except fx_trace.Untraceable as reason:
        raise ValueError(
            f"{_METHOD}: torch.fx cannot trace {type(model).__name__} ({reason}); keep layers with outliers float instead, "
            "with clipping_report(prepared, batches).keep_float(qconfig)"
        ) from None
    nodes = [node for node in graph.nodes if node.op == "call_module"]
    calls = [node.target for node in nodes]
    chains = {node.target: _follow_back(scratch, node, calls) for node in nodes if type(scratch.get_submodule(node.target)) in _LAYERS}
    for path, module in scratch.named_modules():
        if type(module) in _LAYERS and path not in chains:
            chains[path] = _Chain(path, reason="torch.fx does not see its call")  # inside a module of torch.nn, such as an encoder layer
    return list(chains.values())


def _follow_back(model: nn.Module, reader: fx.Node, calls: list[str]) -> _Chain:
    chain, layer = _Chain(reader.target), model.get_submodule(reader.target)
    if calls.count(reader.target) > 1:
        chain.reason = "it runs more than once"
    elif getattr(layer, "groups", 1) != 1:
        chain.reason = "it is a grouped convolution"
    elif _is_tied(model, layer):
        chain.reason = "it shares its weight with another layer"
    node = reader.args[0] if reader.args else reader.kwargs["input"]
    while not chain.reason:
        module = model.get_submodule(node.target) if node.op == "call_module" else None
        if len(node.users) > 1:
            chain.reason = f"its input {node.name} is read by other layers too"
        elif type(module) in _LAYERS and calls.count(node.target) == 1 and getattr(module, "groups", 1) == 1:
            _end_at(chain, node.target, module, layer)
            if _is_tied(model, module):
                chain.reason = f"{node.target} shares its weight with another layer"
            return chain
        elif type(module) in _NORMS and chain.norm is None and module.track_running_stats and calls.count(node.target) == 1:
            chain.norm = node.target
        elif not _passes_halves(module, node):
            chain.reason = f"its input comes through {node.name}, behind which half a value is not half"
        if not chain.reason:
            node = node.args[0] if node.args else node.kwargs["input"]
    return chain


def _is_tied(model: nn.Module, layer: nn.Module) -> bool:
    return sum(parameter is layer.weight for _, parameter in model.named_parameters(remove_duplicate=False)) > 1


def _end_at(chain: _Chain, path: str, producer: nn.Module, layer: nn.Module) -> None:
    chain.producer, chain.channels = path, producer.weight.size(0)
    chain.inputs_per_channel, rest = divmod(layer.weight.size(1), chain.channels)
    if rest or (chain.inputs_per_channel > 1 and not isinstance(layer, nn.Linear)):
        chain.reason = f"its inputs are not the channels of {path}"


def _passes_halves(module: nn.Module | None, node: fx.Node) -> bool:
    if module is not None:
        return isinstance(module, homogeneous.MODULES) or (isinstance(module, nn.Flatten) and module.start_dim == 1)
    if node.op not in ("call_function", "call_method") or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    value, source = node.meta.get("value"), node.args[0].meta.get("value")
    if not isinstance(value, Tensor) or not isinstance(source, Tensor):
        return False
    if node.target in _FLATTENING:
        return value.dim() == 2 and value.shape == source.flatten(1).shape
    if node.target in (torch.mean, "mean"):
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return averages_space(dims, source.dim())
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return name in homogeneous.ELEMENTWISE | homogeneous.POOLS


def _magnitudes(model: nn.Module, batches, layers: list[str]) -> dict[str, list[float]]:
    """Layer -> the largest magnitude of each of its input features or channels."""
    observers, hooks = {}, []
    for path in layers:
        module = model.get_submodule(path)
        axis = -1 if isinstance(module, nn.Linear) else -module.weight.dim() + 1
        observers[path] = make_observer(QuantSpec.activation(observer="min_max", axis=axis)).to(module.weight.device)
        hooks.append(module.register_forward_pre_hook(_watching(observers[path])))
    try:
        for _ in run_batches(model, batches, _METHOD, "looking for outlier channels"):
            pass
    finally:
        for hook in hooks:
            hook.remove()
    seen = {path: observer for path, observer in observers.items() if observer.observed}
    return {path: torch.maximum(-observer.min_val, observer.max_val).tolist() for path, observer in seen.items()}


def _watching(observer):
    def watch(module, args):
        observer(args[0])

    return watch


def _plan(absmax: list[float], expand_ratio: float, outlier_factor: float) -> tuple[list[int], list[int]]:
    """(which channel each new channel copies, by what it is divided): the largest one is halved again and again."""
    sources, divisors = list(range(len(absmax))), [1] * len(absmax)
    limit = outlier_factor * median_magnitude(absmax)
    for _ in range(math.ceil(expand_ratio * len(absmax))):
        largest = max(range(len(sources)), key=lambda i: absmax[sources[i]] / divisors[i])
        if not limit or absmax[sources[largest]] / divisors[largest] <= limit:
            break
        divisors[largest] *= 2
        sources.append(sources[largest])
        divisors.append(divisors[largest])
    return sources, divisors


@torch.no_grad()
def _split(model: nn.Module, chain: _Chain, sources: list[int], divisors: list[int]) -> None:
    producer, layer = model.get_submodule(chain.producer), model.get_submodule(chain.layer)
    norm = model.get_submodule(chain.norm) if chain.norm else None
    index = torch.tensor(sources, device=producer.weight.device)
    divisor = torch.tensor(divisors, device=producer.weight.device)
    halved = producer if norm is None else norm
    _take(producer, ("weight", "bias"), index, divisor if halved is producer else None)
    if norm is not None:
        _give_affine(norm)
        _take(norm, ("weight", "bias"), index, divisor)
        _take(norm, ("running_mean", "running_var"), index, None)
        norm.num_features = len(sources)
    step = chain.inputs_per_channel
    columns = (index[:, None] * step + torch.arange(step, device=index.device)).flatten()
    layer.weight = nn.Parameter(layer.weight.index_select(1, columns), layer.weight.requires_grad)
    setattr(producer, "out_features" if isinstance(producer, nn.Linear) else "out_channels", len(sources))
    setattr(layer, "in_features" if isinstance(layer, nn.Linear) else "in_channels", len(columns))


def _take(module: nn.Module, names, index: Tensor, divisor: Tensor | None) -> None:
    """Replaces parameters and buffers by their rows at `index`, divided."""
    for name in names:
        value = getattr(module, name)
        if value is None:
            continue
        taken = value.index_select(0, index)
        if divisor is not None:
            taken = taken / divisor.reshape(-1, *[1] * (value.dim() - 1))
        setattr(module, name, nn.Parameter(taken, value.requires_grad) if isinstance(value, nn.Parameter) else taken)


def _give_affine(norm: nn.Module) -> None:
    """The halving of a batch norm without weights needs some."""
    if norm.weight is None:
        norm.affine = True
        norm.weight = nn.Parameter(torch.ones_like(norm.running_var))
        norm.bias = nn.Parameter(torch.zeros_like(norm.running_var))


def _check_same(model: nn.Module, split: nn.Module, example_inputs) -> None:
    args, kwargs = unpack(example_inputs)
    with evaluating(model), evaluating(split), torch.no_grad(), repeatable():
        expected, actual = (pytree.tree_leaves(m(*args, **kwargs)) for m in (model, split))
    for a, b in zip(expected, actual):
        if isinstance(a, Tensor) and not torch.allclose(a, b, rtol=1e-3, atol=1e-4 * max(1.0, float(a.abs().max()))):
            raise RuntimeError(f"{_METHOD}: the split model computes something else; please report this")
