"""Does each converted layer compute what the fake-quantized model computes? Used by tests, benchmarks and a user in doubt.

The bar is per layer: fed the integers that the fake-quantized model feeds it, a converted layer may differ by one step in one value of
a thousand. (Its kernel multiplies by s_x*s_w/s_y where the model multiplies by three scales in turn, so a value within a rounding
error of a tie may fall to the other side.) Errors of earlier layers do not count against later ones.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from torchquant.fake_quantize import FakeQuantize
from torchquant.quantized_model import QuantizedModel
from torchquant.tracing import Trace

MAX_STEP = 1
MAX_DIFFERING = 0.001


@dataclass
class LayerAgreement:
    layer: str
    values: int  # how many codes were compared
    differing: float  # fraction of them that differ
    max_step: int  # largest difference between two codes

    @property
    def passed(self) -> bool:
        return self.max_step <= MAX_STEP and self.differing <= MAX_DIFFERING


def layer_agreement(prepared: torch.nn.Module, quantized: QuantizedModel, inputs) -> list[LayerAgreement]:
    """One row for every converted layer that ends in integers; `inputs` as for `convert`. Runs on the CPU.

    A layer whose output stays float has no codes to compare; the drift of the whole network covers it.
    """
    trace = Trace(prepared, inputs, fixed_shapes=True)
    codes = _fake_quantized_codes(trace)
    script = quantized.script
    with torch.no_grad(), _Comparison(quantized.receipt.rows, codes) as comparison:
        script(*trace.inputs)
    comparison.check_complete()
    return comparison.rows


def _fake_quantized_codes(trace: Trace) -> dict[str, list[torch.Tensor]]:
    """For each static activation fake-quant the integers that stand for its outputs, one tensor per call."""
    codes = defaultdict(list)

    def remember(path):
        def hook(module, args, output):
            # Exact: output is (code - zero_point) * scale, and codes are small.
            codes[path].append((output / module.scale).round() + module.zero_point)

        return hook

    handles = [
        module.register_forward_hook(remember(path))
        for path, module in trace.model.named_modules()
        if isinstance(module, FakeQuantize) and not module.spec.dynamic and module.spec.axis is None
    ]
    try:
        trace.run_model(trace.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return codes


class _Comparison(TorchDispatchMode):
    """Watches the converted model's ops in the order of the receipt, compares each result and passes the expected one on."""

    def __init__(self, receipt_rows: list[dict], codes: dict[str, list[torch.Tensor]]):
        super().__init__()
        self.pending = [row for row in receipt_rows if row["kernel"]]
        self.codes = {path: list(calls) for path, calls in codes.items()}
        self.rows: list[LayerAgreement] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not self.pending or not self._is_kernel_of(func, self.pending[0]):
            return result
        row = self.pending.pop(0)
        if row["output"] is None:
            return result
        expected = self.codes[row["output"]].pop(0)
        difference = (result.to(torch.int32) - expected.to(torch.int32)).abs()
        differing = (difference > 0).double().mean().item() if difference.numel() else 0.0
        largest = int(difference.max()) if difference.numel() else 0
        self.rows.append(LayerAgreement(row["layer"], difference.numel(), differing, largest))
        return torch.empty_like(result).copy_(expected)  # in the memory format of the kernel's own result

    def check_complete(self) -> None:
        if self.pending:
            raise RuntimeError(f"layer_agreement: no op ran for these receipt rows: {', '.join(row['layer'] for row in self.pending)}")

    @staticmethod
    def _is_kernel_of(func, row: dict) -> bool:
        return func.namespace == "torchquant" and row["kernel"].split("/")[0] == func._schema.name.split("::")[1]
