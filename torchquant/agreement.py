"""Does each converted layer compute what the fake-quantized model computes? Used by tests, benchmarks and a user in doubt.

The bar is per layer: fed the integers that the fake-quantized model feeds it, a converted layer may differ by one step in one value of
a thousand. (Its kernel multiplies by s_x*s_w/s_y where the model multiplies by three scales in turn, so a value within a rounding
error of a tie may fall to the other side.) Errors of earlier layers do not count against later ones.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from torchquant.fake_quantize import FakeQuantize
from torchquant.quantized_model import QuantizedModel
from torchquant.tracing import Trace

MAX_STEP = 1
MAX_DIFFERING = 0.001
# Of floats that become codes: what float layers compute in another order may fall to the other side of a tie more often.
MAX_DIFFERING_ENTRY = 0.01

# Ops that pick, move or repeat values. A fake-quant behind them stands for the op before them: the converter moves quantize up there,
# which changes nothing because quantize is monotonic and acts on each value alone.
_MOVERS = frozenset(
    "_reshape_alias _unsafe_view alias as_strided cat clone constant_pad_nd detach expand flip index_select max_pool1d max_pool2d "
    "max_pool2d_with_indices permute pixel_shuffle pixel_unshuffle repeat reshape roll select slice split split_with_sizes squeeze stack "
    "t transpose unbind unsqueeze upsample_nearest1d upsample_nearest2d view".split()
)


@dataclass
class LayerAgreement:
    layer: str
    values: int  # how many codes were compared
    differing: float  # fraction of them that differ
    max_step: int  # largest difference between two codes
    entry: bool = False  # no layer, but a place where floats become codes

    @property
    def passed(self) -> bool:
        return self.max_step <= MAX_STEP and self.differing <= (MAX_DIFFERING_ENTRY if self.entry else MAX_DIFFERING)


def layer_agreement(prepared: torch.nn.Module, quantized: QuantizedModel, inputs) -> list[LayerAgreement]:
    """One row for every converted layer that ends in integers, and one (`entry`) for every place where floats become integers, under
    the path of its fake-quant; `inputs` as for `convert`. Runs on the CPU.

    A layer whose output stays float has no codes to compare; the drift of the whole network covers it.
    """
    trace = Trace(prepared, inputs, fixed_shapes=True)
    reference = _run_reference(trace)
    script = quantized.script
    with torch.no_grad(), _Comparison(quantized.receipt.rows, reference) as comparison:
        script(*trace.inputs)
    comparison.check_complete()
    return comparison.rows


class Origins(TorchDispatchMode):
    """Follows values that are only moved (reshaped, pooled by maximum, concatenated) back to the tensors that were computed.

    To be used in inference mode, because views that autograd knows about are not the tensors that the dispatcher saw.
    """

    def __init__(self):
        super().__init__()
        self.sources: dict[int, list[torch.Tensor]] = {}  # of a moved tensor: what it was made of
        self.alive: list = []  # so that no two tensors share an address

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._schema.name.split("::")[1] in _MOVERS:
            sources = list(args[0]) if isinstance(args[0], (tuple, list)) else [args[0]]
            for moved in pytree.tree_leaves(result):
                self.sources[moved._cdata] = sources
                self.alive.append((moved, sources))
        return result

    def of(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        sources = self.sources.get(tensor._cdata)
        if sources is None:
            return [tensor]
        return [origin for source in sources for origin in self.of(source)]


class _Reference(Origins):
    """Runs the fake-quantized model and notes, for each static activation fake-quant, the codes of the tensors that it stands for."""

    def __init__(self):
        super().__init__()
        self.codes: dict[str, list[torch.Tensor]] = defaultdict(list)
        self.qparams: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def watch(self, path: str):
        def hook(fake_quant, args):
            spec = fake_quant.spec
            self.qparams[path] = (fake_quant.scale, fake_quant.zero_point)
            for origin in self.of(args[0]):
                codes = torch.ops.torchquant.quantize(
                    origin, fake_quant.scale, fake_quant.zero_point,
                    dtype=spec.dtype, quant_min=spec.quant_min, quant_max=spec.quant_max)  # fmt: skip
                self.codes[path].append(codes)

        return hook


def _run_reference(trace: Trace) -> _Reference:
    reference = _Reference()
    handles = [
        module.register_forward_pre_hook(reference.watch(path))
        for path, module in trace.model.named_modules()
        if isinstance(module, FakeQuantize) and not module.spec.dynamic and module.spec.axis is None
    ]
    try:
        with torch.inference_mode(), reference:
            trace.run_model(trace.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return reference


class ReceiptWatch(TorchDispatchMode):
    """Watches a converted model's ops in the order of its receipt. `entered` and `computed` see each result and give the tensor
    that is passed on in its place."""

    def __init__(self, receipt_rows: list[dict]):
        super().__init__()
        self.pending = [row for row in receipt_rows if row["kernel"]]

    def entered(self, scale: torch.Tensor, zero_point: torch.Tensor, result: torch.Tensor, kwargs: dict) -> torch.Tensor:
        """Floats became codes."""
        return result

    def computed(self, row: dict, result: torch.Tensor, func, kwargs: dict) -> torch.Tensor:
        """The layer of a receipt row was computed."""
        return result

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.torchquant.quantized_island.default:
            with self:  # its layers, op by op
                return func.decompose(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.torchquant.quantize.default:
            return self.entered(args[1], args[2], result, kwargs or {})
        if not self.pending or not _is_kernel_of(func, self.pending[0], result):
            return result
        row = self.pending.pop(0)
        while self.pending and "merged" in self.pending[0]["fused"]:  # computed by this very op; its results are floats
            self.pending.pop(0)
        return self.computed(row, result, func, kwargs or {})

    def check_complete(self) -> None:
        if self.pending:
            raise RuntimeError(f"layer_agreement: no op ran for these receipt rows: {', '.join(row['layer'] for row in self.pending)}")


class _Comparison(ReceiptWatch):
    """Compares each result with the fake-quantized model's and passes the expected one on."""

    def __init__(self, receipt_rows: list[dict], reference: _Reference):
        super().__init__(receipt_rows)
        self.codes = reference.codes
        self.entries = [  # what a quantize may write: taken before the comparison consumes the lists
            (path, *reference.qparams[path], tensor) for path, tensors in reference.codes.items() for tensor in tensors
        ]
        self.rows: list[LayerAgreement] = []

    def computed(self, row, result, func, kwargs):
        if row["output"] is None:
            return result
        expected = self._take_expected(row, result)
        self._record(row["layer"], result, expected)
        return torch.empty_like(result).copy_(expected)  # in the memory format of the kernel's own result

    def entered(self, scale, zero_point, result, kwargs):
        """Where floats become codes, the drift of earlier layers would enter: the fake-quantized model's codes take their place."""
        fitting = [
            (path, codes.reshape(result.shape))
            for path, entry_scale, entry_zero_point, codes in self.entries
            if codes.numel() == result.numel() and torch.equal(entry_scale, scale) and torch.equal(entry_zero_point, zero_point)
        ]
        if not fitting:
            return result
        path, nearest = min(fitting, key=lambda entry: int((_difference(result, entry[1]) > 0).sum()))
        self._record(path, result, nearest, entry=True)
        return torch.empty_like(result).copy_(nearest)

    def _record(self, name: str, result: torch.Tensor, expected: torch.Tensor, entry: bool = False) -> None:
        difference = _difference(result, expected)
        differing = (difference > 0).double().mean().item() if difference.numel() else 0.0
        largest = int(difference.max()) if difference.numel() else 0
        self.rows.append(LayerAgreement(name, difference.numel(), differing, largest, entry))

    def _take_expected(self, row: dict, result: torch.Tensor) -> torch.Tensor:
        """A concatenation's fake-quant stands for several layers: the tensor that is nearest is this layer's."""
        codes = self.codes[row["output"]]
        fitting = [i for i, tensor in enumerate(codes) if tensor.numel() == result.numel()]
        if not fitting:
            raise RuntimeError(f"layer_agreement: {row['layer']} writes {list(result.shape)}, and nothing of that size reaches {row['output']}")
        nearest = min(fitting, key=lambda i: int((_difference(result, codes[i].reshape(result.shape)) > 0).sum()))
        return codes.pop(nearest).reshape(result.shape)


def _is_kernel_of(func, row: dict, result) -> bool:
    kernel, backend = row["kernel"].split("/")
    if func._schema.name.split("::")[1] != kernel:
        return False
    # A row of torch's own op (a concatenation) is of one on codes.
    return not result.is_floating_point() if backend == func.namespace == "aten" else func.namespace == "torchquant"


def _difference(result: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return (result.to(torch.int32) - expected.to(torch.int32)).abs()
