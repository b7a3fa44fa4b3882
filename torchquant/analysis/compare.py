"""compare: where does a quantized model leave the float one? Per layer, float against prepared against converted, over batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchquant.analysis.comparison import ComparedLayer, Comparison
from torchquant.analysis.layer_values import ConvertedValue, LayerValues, run_converted
from torchquant.analysis.runs import Run, make_reference
from torchquant.batches import checked_batches
from torchquant.calibrate import check_calibrated
from torchquant.fake_quantize import FakeQuantize
from torchquant.functional import dequantize
from torchquant.prepare import PreparedModel
from torchquant.prepare.example_run import unpack
from torchquant.progress import ProgressBar
from torchquant.quantized_model import QuantizedModel

MIN_SQNR_DB = 15.0


def compare(float_model, quantized, batches, *, prepared=None, min_sqnr_db: float = MIN_SQNR_DB) -> Comparison:
    """Runs the float and the quantized model side by side and compares what every layer gives.

    Each layer of the quantized model gets its inputs from the quantized layers before it, so errors add up along the network as they
    do in use. Values are read where readers read them: a layer whose output carries a fake-quant is compared behind it. Nothing is
    kept but running sums and one histogram per layer, so the number of batches costs no memory; one batch's activations are held at
    a time. No model is changed.

    Args:
        float_model: the model that was prepared, with its float weights.
        quantized: what `prepare` made (calibrated) or what `convert` made. It may be the TorchScript that `trace` makes of a prepared
            model if float_model is TorchScript too; layers are then those that have weights, and places those of fake-quants.
        batches: an iterable of tensors, tuples of arguments or dicts of keyword arguments, as for `calibrate`.
        prepared: beside a converted `quantized`, the prepared model that it was made of. It brings the prepared columns, and the
            scales of those integers that a converted file alone does not tell (pools and tables).
        min_sqnr_db: below this signal-to-quantization-noise ratio a layer counts as wrong, see `Comparison.first_bad`.

    Raises:
        TypeError, ValueError: for models of the wrong kind, a prepared model that saw no data, or empty batches.
        RuntimeError: for a batch on which a model does not run.
    """
    converted, prepared = _sorted_out(float_model, quantized, prepared)
    batches, total = checked_batches(batches, "compare")
    with torch.no_grad(), ProgressBar("comparing", total) as bar:
        comparing = None
        for index, batch in enumerate(batches):
            args, kwargs = unpack(batch, f"compare: batch {index}")
            try:
                if comparing is None:
                    reference = make_reference(float_model, prepared, converted, batch, args, kwargs)
                    comparing = _Comparing(reference, None if prepared is None else Run(prepared, True), converted)
                comparing.add(args, kwargs)
            except Exception as error:  # a model's own limit, whatever it raises
                raise RuntimeError(f"compare: batch {index} does not run: {error}") from error
            bar.advance()
    return Comparison(list(comparing.rows.values()), min_sqnr_db, comparing.reference.remarks)


def _sorted_out(float_model, quantized, prepared):
    """(converted, prepared), either of which may be None."""
    if not isinstance(float_model, nn.Module) or isinstance(float_model, (PreparedModel, QuantizedModel)):
        raise TypeError(f"compare: float_model must be the float torch.nn.Module, got {type(float_model).__name__}")
    if not (_is_prepared(quantized) or isinstance(quantized, QuantizedModel)):
        raise TypeError(f"compare: quantized must come from torchquant.prepare or torchquant.convert, got {type(quantized).__name__}")
    if prepared is not None and not _is_prepared(prepared):
        raise TypeError(f"compare: prepared must come from torchquant.prepare, got {type(prepared).__name__}")
    if _is_prepared(quantized):
        if prepared is not None:
            raise ValueError("compare: quantized is a prepared model already; give prepared= only beside a converted one")
        quantized, prepared = None, quantized
    if prepared is not None:
        check_calibrated(prepared, "compare")
    return quantized, prepared


def _is_prepared(model) -> bool:
    if isinstance(model, torch.jit.ScriptModule):
        return any(module.original_name == "FakeQuantize" for module in model.modules())
    return isinstance(model, PreparedModel)


_NO_SCALE = "the file does not hold its scale; give prepared= to compare it"


class _Comparing:
    """The running sums of one comparison."""

    def __init__(self, reference: Run, prepared: Run | None, converted: QuantizedModel | None):
        self.reference, self.prepared, self.converted = reference, prepared, converted
        self.rows: dict[str, ComparedLayer] = {}
        self.fake_quants = {}  # of the prepared model, by place
        self.converted_places: dict[str, str] = {}  # layer of a receipt row -> the key of the value that its op gives

    def add(self, args, kwargs) -> None:
        reference = self.reference(args, kwargs)
        for key, value in {**reference.places, **reference.layers}.items():
            if value is not None and value.is_floating_point() and value.isnan().any():
                raise ValueError(f"the float model's value of {key or 'its output'!r} holds NaN; check the batch and the model")
        quantized = self.prepared(args, kwargs) if self.prepared is not None else None
        self.fake_quants = quantized.fake_quants if quantized is not None else {}
        structure = reference if self.reference.places or quantized is None else quantized
        behind = {layer: place for place, layer in structure.layer_of_place.items()}
        if not self.rows:
            self._make_rows(reference, structure, behind)
        simulated = self._add_prepared(reference, quantized, behind) if quantized else {}
        if self.converted is not None:
            self._add_converted(args, kwargs, reference, simulated, behind)

    def _make_rows(self, reference, structure, behind):
        names, has_conv1d = self.reference.names_of_places(), self.reference.has_conv1d
        for key in structure.order:
            path, _, call = key.partition("#")
            if key in reference.layers:
                self.rows[key] = ComparedLayer(key, key or "the model", self.reference.kind_of(path), behind.get(key))
            elif key in reference.places and key not in structure.layer_of_place:
                name = names.get(path, path)
                self.rows[key] = ComparedLayer(key, f"{name} (call {call})" if call else name, "operation", key)
        for key, row in self.rows.items():
            row.start_histogram(_float_value(reference, key), has_conv1d)

    def _add_prepared(self, reference, quantized, behind) -> dict[str, Tensor]:
        """Compares the prepared model; gives its values for the converted one to be compared with."""
        simulated = {}
        for key, row in self.rows.items():
            expected = _float_value(reference, key)
            place = behind.get(key, key)
            fake_quant = quantized.fake_quants.get(place)
            value = quantized.places.get(place) if fake_quant is not None else quantized.layers.get(key)
            if expected is None or value is None or value.shape != expected.shape:
                continue
            if fake_quant is not None:
                row.prepared.add_codes(_codes(fake_quant, value), fake_quant)
                value = _fake_quantized(fake_quant, value)
                row.add_clipped(expected, fake_quant)
            row.prepared.errors.add(expected, value)
            row.observe(expected)
            simulated[key] = value
        return simulated

    def _add_converted(self, args, kwargs, reference, simulated, behind):
        _, results = run_converted(self.converted, args, kwargs)
        open_places: dict[str, list[str]] = {}  # path of a fake-quant -> the rows that no op has been found for yet
        for key, row in self.rows.items():
            if row.place:
                open_places.setdefault(row.place.split("#")[0], []).append(key)
        for result in results:
            key, value = self._find_row(result, reference, open_places)
            if key is not None:
                self._add_value(self.rows[key], result, value, _float_value(reference, key), simulated.get(key))
        self._explain_missing()

    def _find_row(self, result: ConvertedValue, reference, open_places) -> tuple[str | None, Tensor | None]:
        """(key of the row that an op's result belongs to, its value), (None, None) where there is none."""
        if result.row is None:
            written = {row["output"] for row in self.converted.receipt.rows}
            candidates = [key for place, keys in open_places.items() if place not in written for key in keys]
        elif result.row["output"] is None:
            layer = result.row["layer"]
            alone = layer in self.rows and not result.row["fused"] and result.result.is_floating_point()
            fits = alone and _fits(result.result, _float_value(reference, layer))
            return (layer, result.result) if fits else (None, None)
        else:
            candidates = open_places.get(result.row["output"], [])
        candidates = [key for key in candidates if _fits(result.result, _float_value(reference, key))]
        if not candidates:
            return None, None
        scale, zero_point = self._qparams(result)
        if scale is None:
            self.rows[candidates[0]].converted_note = _NO_SCALE
            return None, None
        value = dequantize(result.result, scale, zero_point)
        # A fake-quant that several layers share (a concatenation's) has a row per tensor: the nearest is this op's.
        key = min(candidates, key=lambda key: _distance(value, _float_value(reference, key)))
        open_places[self.rows[key].place.split("#")[0]].remove(key)
        return key, value

    def _add_value(self, row: ComparedLayer, result: ConvertedValue, value: Tensor, expected: Tensor, simulated: Tensor | None):
        value = value.reshape(expected.shape)
        expected = expected.to(value.device)
        row.converted.errors.add(expected, value)
        if result.row is not None:
            row.computed_by = result.row["layer"]
            self.converted_places[row.computed_by] = row.key
        if self.prepared is None:
            row.observe(expected)
        if simulated is not None:
            row.against_prepared.add(simulated.to(value.device), value)
        if not result.result.is_floating_point():
            row.converted.add_codes(result.result, result)

    def _explain_missing(self) -> None:
        """Says of each row without a value of its own in the converted model why there is none."""
        receipt = {row["layer"]: row for row in self.converted.receipt.rows}
        order = list(self.rows)
        for key, row in self.rows.items():
            if row.converted.errors.count or row.converted_note:
                continue
            if key in receipt and not receipt[key]["kernel"]:
                row.converted_note = "runs in float"
            elif key in receipt and not receipt[key]["fused"] and receipt[key]["output"] and receipt[key]["output"] not in self.fake_quants:
                row.converted_note = _NO_SCALE
            elif key in receipt and not receipt[key]["fused"]:
                row.converted_note = "moves integers and changes none"
            else:
                inside = [
                    end for layer, end in self.converted_places.items()
                    if layer in self.rows and order.index(layer) <= order.index(key) < order.index(end)
                ]  # fmt: skip
                otherwise = "its integers stand in another shape" if row.place == key else "no op of its own"
                row.converted_note = f"inside a fused op that ends at {self.rows[inside[0]].layer}" if inside else otherwise

    def _qparams(self, result: ConvertedValue):
        fake_quant = self.fake_quants.get(result.row["output"]) if result.row is not None else None
        if fake_quant is not None:
            return fake_quant.scale.detach().to(result.result.device), fake_quant.zero_point.detach().to(result.result.device)
        return (result.scale, result.zero_point) if result.scale is not None else (None, None)


def _float_value(values: LayerValues, key: str) -> Tensor | None:
    return values.layers.get(key, values.places.get(key))


def _fits(value: Tensor, expected: Tensor | None) -> bool:
    """Same shape but for dimensions of one element: a pool keeps those that a mean drops."""
    return expected is not None and [size for size in value.shape if size != 1] == [size for size in expected.shape if size != 1]


def _distance(value: Tensor, expected: Tensor) -> float:
    return float((value.reshape(expected.shape) - expected.to(value.device)).square().sum())


def _codes(fake_quant: FakeQuantize, x: Tensor) -> Tensor:
    spec = fake_quant.spec
    return torch.ops.torchquant.quantize(
        x, fake_quant.scale.detach(), fake_quant.zero_point.detach(), axis=spec.axis, group_size=spec.group_size,
        dtype=spec.dtype, quant_min=spec.quant_min, quant_max=spec.quant_max,
    )  # fmt: skip


def _fake_quantized(fake_quant: FakeQuantize, x: Tensor) -> Tensor:
    spec = fake_quant.spec
    return torch.ops.torchquant.fake_quantize(
        x, fake_quant.scale.detach(), fake_quant.zero_point.detach(), axis=spec.axis, group_size=spec.group_size,
        quant_min=spec.quant_min, quant_max=spec.quant_max,
    )  # fmt: skip
