"""validate: is the quantized model good enough? Compares it with the float model on the user's data, and with limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils import _pytree as pytree

from torchquant import _build_info, _C
from torchquant.analysis.accuracy import Accuracy, measure_accuracy, top1
from torchquant.analysis.labelled_data import LabelledBatch, labelled_batches, narrowed
from torchquant.analysis.speed import PROCESSES, Timed, device_of, in_eval_mode, measure_fresh_processes, measure_latency
from torchquant.quantized_model import QuantizedModel
from torchquant.shown_as_table import ShownAsTable, new_table
from torchquant.tracing import flat_output
from torchquant.trees import tensors_in


@dataclass
class ValidationReport(ShownAsTable):
    """What `validate` found. `float` and `quantized` hold the same keys, None where a figure could not be had:

    latency_ms (p50_ms, p95_ms, p99_ms, mean_ms, min_ms, runs: one call on `latency_shapes`), throughput (samples per second on
    `throughput_shapes`), cold_start_ms, peak_memory_bytes, model_memory_bytes, bytes (of the file), timed_by, and not_measured: why
    there is no cold start and memory, or "".
    """

    accuracy: Accuracy
    float: dict
    quantized: dict
    latency_shapes: list
    throughput_shapes: list
    fallbacks: list[dict]  # receipt rows of layers that stayed float although they were asked to be quantized
    machine: dict

    def ratios(self) -> dict[str, float | None]:
        """Quantized over float: below 1 is a gain, for throughput above 1."""
        pairs = {
            "latency": (self.float["latency_ms"]["p50_ms"], self.quantized["latency_ms"]["p50_ms"]),
            **{
                name: (self.float[key], self.quantized[key])
                for name, key in (
                    ("throughput", "throughput"),
                    ("cold_start", "cold_start_ms"),
                    ("memory", "peak_memory_bytes"),
                    ("model_memory", "model_memory_bytes"),
                    ("size", "bytes"),
                )
            },
        }
        return {name: quantized / of_float if of_float and quantized is not None else None for name, (of_float, quantized) in pairs.items()}

    def failures(
        self,
        *,
        max_accuracy_drop: float | None = None,
        max_latency_ratio: float | None = None,
        max_size_ratio: float | None = None,
        max_memory_ratio: float | None = None,
        max_cold_start_ratio: float | None = None,
        max_fallbacks: int | None = None,
    ) -> list[str]:
        """One sentence for each limit that is exceeded, with the figure and the limit; an empty list if all hold.

        `max_accuracy_drop` is in the metric's own unit (0.005 is half a point of accuracy), ratios are quantized over float. A
        figure that could not be measured fails its limit. Raises ValueError for a limit that is NaN, which nothing would exceed.
        """
        ratios = self.ratios()
        names = ", ".join(row["layer"] for row in self.fallbacks)
        figures = [
            (f"the drop in {self.accuracy.metric}", self.accuracy.drop, "max_accuracy_drop", max_accuracy_drop),
            ("the latency ratio (P50, quantized / float)", ratios["latency"], "max_latency_ratio", max_latency_ratio),
            ("the file size ratio (quantized / float)", ratios["size"], "max_size_ratio", max_size_ratio),
            ("the peak memory ratio (quantized / float)", ratios["memory"], "max_memory_ratio", max_memory_ratio),
            ("the cold start ratio (quantized / float)", ratios["cold_start"], "max_cold_start_ratio", max_cold_start_ratio),
            (f"the number of fallbacks ({names})", len(self.fallbacks), "max_fallbacks", max_fallbacks),
        ]
        for _, _, name, limit in figures:
            if limit is not None and math.isnan(limit):
                raise ValueError(f"ValidationReport.failures: {name} must be a number, got nan")
        return [
            f"{what} was not measured, and {name} asks for at most {limit:g}" if figure is None
            else f"{what} is {figure:.4g}, and {name} allows {limit:g}"
            for what, figure, name, limit in figures
            if limit is not None and (figure is None or figure > limit)
        ]  # fmt: skip

    def to_dict(self) -> dict:
        """Plain values for JSON and for the report."""
        return {
            "accuracy": self.accuracy.to_dict(),
            "float": self.float,
            "quantized": self.quantized,
            "ratios": self.ratios(),
            "latency_shapes": self.latency_shapes,
            "throughput_shapes": self.throughput_shapes,
            "fallbacks": self.fallbacks,
            "machine": self.machine,
        }

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(what, float, quantized, difference or ratio) as text, for tables."""
        return rows_of(self.to_dict())

    def table(self):
        table = new_table(title="Validation", caption="\n".join(notes_of(self.to_dict())), caption_justify="left")
        for heading in ("", "float", "quantized", "quantized / float"):
            table.add_column(heading, overflow="fold")
        for row in self.rows():
            table.add_row(*row)
        return table


def rows_of(validation: dict) -> list[tuple[str, str, str, str]]:
    """The table of a ValidationReport's `to_dict()`: (what, float, quantized, difference or ratio)."""
    accuracy, ratios = validation["accuracy"], validation["ratios"]
    sides = validation["float"], validation["quantized"]
    low, high = accuracy["interval"]
    interval = f"drop {accuracy['drop']:.4g} [{low:.4g}, {high:.4g}]"
    rows = [(accuracy["metric"], f"{accuracy['float']:.4f}", f"{accuracy['quantized']:.4f}", interval)]
    for percent in (50, 95, 99):
        values = [side["latency_ms"][f"p{percent}_ms"] for side in sides]
        rows.append((f"latency P{percent}", *(f"{value:.3f} ms" for value in values), f"{values[1] / values[0]:.3f}"))
    for what, key, ratio, form in (
        ("throughput", "throughput", "throughput", lambda value: f"{value:,.1f}/s"),
        ("cold start", "cold_start_ms", "cold_start", lambda value: f"{value:.0f} ms"),
        ("peak memory", "peak_memory_bytes", "memory", _megabytes),
        ("of it, after imports", "model_memory_bytes", "model_memory", _megabytes),
        ("file", "bytes", "size", _megabytes),
    ):
        if any(side[key] is not None for side in sides):
            texts = ("not measured" if side[key] is None else form(side[key]) for side in sides)
            rows.append((what, *texts, "" if ratios[ratio] is None else f"{ratios[ratio]:.3f}"))
    rows.append(("fallbacks", "", str(len(validation["fallbacks"])), ", ".join(row["layer"] for row in validation["fallbacks"])))
    return rows


def notes_of(validation: dict) -> list[str]:
    """What a reader of the table must know: how the figures were made."""
    accuracy, machine = validation["accuracy"], validation["machine"]
    test = "" if accuracy["p_value"] is None else f", McNemar's exact p = {accuracy['p_value']:.3g}"
    notes = [
        f"{accuracy['samples']} samples; {100 * accuracy['confidence']:g} % interval of the drop: {accuracy['method']}{test}",
        f"latency of one call on {_shapes(validation['latency_shapes'])}, {validation['float']['latency_ms']['runs']} runs each in turn",
        f"throughput on {_shapes(validation['throughput_shapes'])}",
        f"{machine['device']}, {machine['isa']}, {machine['threads']} thread{'s' * (machine['threads'] > 1)}, torch {machine['torch']}",
    ]
    for name in ("float", "quantized"):
        if validation[name]["timed_by"] != "C++":
            notes.append(f"the {name} model was called from {validation[name]['timed_by']}")
        if validation[name]["not_measured"]:
            notes.append(f"cold start and memory of the {name} model were not measured: {validation[name]['not_measured']}")
    return notes


def validate(
    float_model: torch.nn.Module,
    quantized: QuantizedModel,
    data,
    metric: Callable | None = None,
    *,
    higher_is_better: bool = True,
    batch_size: int = 32,
    confidence: float = 0.95,
    runs: int = 100,
    processes: int = PROCESSES,
) -> ValidationReport:
    """Compares a float model with its quantized version on labelled data: accuracy, latency, throughput, cold start, memory, size
    and fallbacks. Neither model is changed.

    data: an iterable of (inputs, labels) batches, such as a DataLoader, where inputs is what the model takes (a tensor, a tuple of
    arguments or a dict of keyword arguments); or one (inputs, labels) tuple, which is cut into batches of `batch_size`.

    metric: called as metric(outputs, labels) on the CPU, where dict, list and dataclass outputs have become tuples. It returns a
    score for each sample, shape [N] (preferred: its mean is the metric, the interval of the difference comes from the pairs), or one
    number for the data as a whole (called on all outputs together, and on 1,000 resamples for the interval). Without it: top-1
    accuracy, for outputs [N, classes] and labels [N] of class indices. `higher_is_better=False` for losses and perplexity.

    runs: timed calls for each model on the first sample (on the first batch where a model takes no single one), in turns; a fifth
    of them on the first batch for the throughput. processes: how many fresh processes of each model cold start and memory are the
    median of; 0 leaves them out. The models run on the devices that they are on.

    Raises TypeError and ValueError for what cannot be compared: empty data, shapes that the models do not take, a metric that
    fails or is NaN.
    """
    _check_arguments(float_model, quantized, metric, batch_size, confidence, runs, processes)
    batches, total = labelled_batches(data, batch_size)
    first: list[LabelledBatch] = []
    accuracy = measure_accuracy(
        {"float": _runner("float", float_model), "quantized": _runner("quantized", quantized)},
        _keep_first(batches, first),
        total,
        metric or top1,
        higher_is_better=higher_is_better,
        confidence=confidence,
    )
    batch = first[0]
    single = _single_sample(float_model, quantized, batch)
    models = [_timed("float", float_model, single), _timed("quantized", quantized, single)]
    latency = measure_latency(models, runs, "validating: latency")
    fresh = measure_fresh_processes(models, processes)
    whole = [_timed("float", float_model, batch), _timed("quantized", quantized, batch)]
    per_batch = measure_latency(whole, max(1, runs // 5), "validating: throughput")
    sides = {
        model.name: {
            "latency_ms": latency[model.name],
            "throughput": 1000 * batch.size / per_batch[model.name]["p50_ms"],
            **{key: fresh[model.name].get(key) for key in ("cold_start_ms", "peak_memory_bytes", "model_memory_bytes", "bytes")},
            "timed_by": model.timed_by,
            "not_measured": fresh[model.name]["not_measured"],
        }
        for model in models
    }
    return ValidationReport(
        accuracy=accuracy,
        **sides,
        latency_shapes=_shape_list(single),
        throughput_shapes=_shape_list(batch),
        fallbacks=quantized.receipt.fallbacks(),
        machine=_machine(quantized),
    )


def _check_arguments(float_model, quantized, metric, batch_size, confidence, runs, processes) -> None:
    if not isinstance(quantized, QuantizedModel):
        raise TypeError(f"validate: quantized must be a model from torchquant.convert or torchquant.load, got {type(quantized).__name__}")
    if not isinstance(float_model, torch.nn.Module) or isinstance(float_model, QuantizedModel):
        raise TypeError(f"validate: float_model must be the float torch.nn.Module or TorchScript, got {type(float_model).__name__}")
    if metric is not None and not callable(metric):
        raise TypeError(f"validate: metric must be callable as metric(outputs, labels), got {type(metric).__name__}")
    for name, value, lowest in (("batch_size", batch_size, 1), ("runs", runs, 1), ("processes", processes, 0)):
        if not isinstance(value, int) or value < lowest:
            raise ValueError(f"validate: {name} must be an integer of at least {lowest}, got {value!r}")
    if not 0 < confidence < 1:
        raise ValueError(f"validate: confidence must lie between 0 and 1, such as 0.95; got {confidence!r}")


def _keep_first(batches, kept: list):
    for batch in batches:
        if not kept:
            kept.append(batch)
        yield batch


def _runner(name: str, model: torch.nn.Module) -> Callable:
    device = device_of(model)

    def run(batch: LabelledBatch):
        args, kwargs = _to(device, (batch.args, batch.kwargs))
        try:
            with torch.no_grad(), in_eval_mode(model):  # not inference mode: a metric may write into the outputs
                outputs = flat_output(model(*args, **kwargs))
        except Exception as error:  # whatever the model raises
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1].removeprefix("RuntimeError: ")
            raise ValueError(f"validate: the {name} model does not run on batch {batch.index} of shape {batch.shapes()}: {last}") from error
        return _to(torch.device("cpu"), outputs)

    return run


def _single_sample(float_model, quantized, batch: LabelledBatch) -> LabelledBatch:
    """The first sample alone, or the whole batch where a model takes only its size."""
    args, kwargs = narrowed((batch.args, batch.kwargs), batch.size, 0, 1)
    single = LabelledBatch(batch.index, args, kwargs, None, 1)
    try:
        for name, model in (("float", float_model), ("quantized", quantized)):
            _runner(name, model)(single)
    except ValueError:
        return batch
    return single


def _timed(name: str, model: torch.nn.Module, batch: LabelledBatch) -> Timed:
    return Timed(name, model, *_to(device_of(model), (batch.args, batch.kwargs)))


def _to(device: torch.device, tree):
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, tree)


def _machine(quantized: QuantizedModel) -> dict:
    return {
        "device": str(device_of(quantized)),
        "isa": _C.selected_isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchquant": _build_info.VERSION,
    }


def _shape_list(batch: LabelledBatch) -> list[list[int]]:
    return [list(tensor.shape) for tensor in tensors_in((batch.args, batch.kwargs))]


def _shapes(shapes: list) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes)


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.2f} MB"
