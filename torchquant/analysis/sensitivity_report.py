"""SensitivityReport: what tq.sensitivity_scan returns. Ranks layers, proposes configurations, prints, saves and plots itself."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from torch import nn

from torchquant.files import write_text
from torchquant.qconfig import QConfig, QConfigMapping, as_mapping
from torchquant.shown_as_table import ShownAsTable, new_table

_FORMAT = "torchquant sensitivity scan 1"

# What a budget limits, and in which words an error speaks of it.
_LIMITS = {
    "max_latency_ms": ("latency_ms", "{:.4g} ms"),
    "max_size_mb": ("size_mb", "{:.4g} MB"),
    "max_accuracy_drop": ("drop", "a drop of {:.4g}"),
}
_PARETO_POINTS = 16
_NOT_FINITE = {math.inf: "exact", -math.inf: "not finite"}  # how an SQNR is shown
# Beyond what float64 resolves. An SQNR may be infinite; sums of noise and bars of a plot may not.
_MOST_DB = 200.0


@dataclass
class SensitivityReport(ShownAsTable):
    """The result of a scan.

    `rows` is a dict per layer and candidate, in the order of the model:

    - "layer", "kind", "candidate" (the name of the QConfig), "modules" (paths of the modules that own its weights), "qconfig";
    - "alone_metric", "alone_drop", "alone_sqnr_db": with this layer alone quantized; a drop is positive where quantization hurts,
      whether higher or lower is better;
    - "but_one_metric", "but_one_gain", "but_one_sqnr_db": with all layers but this quantized; the gain is what leaving it float
      regains;
    - "float_ms", "quantized_ms", "latency_gain_ms", "kernel": the layer by itself, on the inputs that it meets in the model; None
      where it was not measured, kernel "" where conversion leaves it float;
    - "float_mb", "quantized_mb": its weights, in 10^6 bytes.

    What was not scanned is None; an SQNR is infinite where quantization changes nothing, and minus infinity where the quantized
    output is NaN or infinite. `candidates` has for each QConfig the
    "metric", "sqnr_db" and "latency_ms" of the model with every layer quantized, and "layers_gain_ms", the sum of what its layers
    gain, scanned or not. `seconds` tells what the scan took, and how much
    of it the evaluations were.
    """

    rows: list[dict]
    candidates: dict[str, dict]
    float_metric: float | None
    float_latency_ms: float | None
    float_size_mb: float
    higher_is_better: bool
    mode: str
    seconds: dict[str, float] = field(default_factory=dict)

    # ---- ranking

    @property
    def ranking(self) -> list[dict]:
        """The rows, from the layer that hurts most to the one that hurts least: by the drop of the metric, then by SQNR, then in
        the order of the model. Latency, which no two runs measure alike, has no part in it."""
        return sorted(self.rows, key=lambda row: (-_drop(row), _sqnr_db(row)))

    # ---- proposals

    def propose(
        self, *, max_latency_ms: float | None = None, max_size_mb: float | None = None, max_accuracy_drop: float | None = None
    ) -> QConfigMapping:
        """The best precision for every layer within budgets, for `prepare`, `prepare_qat` or `quantize_model`.

        With budgets for latency or size alone it is the configuration with the least predicted drop of the metric, and of equal
        ones the one with the best SQNR; with `max_accuracy_drop` (in units of the metric) the fastest one within it, or the
        smallest where latency was not measured. Found by integer programming. `predict` tells what it promises: drops and gains
        of layers are added up, so evaluate the result. Layers that were not scanned stay float.

        Raises:
            ValueError: no budget, or one that cannot be met; the error names the least that can be reached.
        """
        from torchquant.analysis.mixed_precision import Unreachable, choose  # here and below: only solvers need numpy and scipy

        budgets = {"max_latency_ms": max_latency_ms, "max_size_mb": max_size_mb, "max_accuracy_drop": max_accuracy_drop}
        budgets = {name: float(value) for name, value in budgets.items() if value is not None}
        self._check_budgets(budgets)
        layers, options = self._options()
        limits = {_LIMITS[name][0]: value for name, value in budgets.items()}
        for quantity, total in self._totals_of_the_rest().items():
            if quantity in limits:
                limits[quantity] -= total
        for name in self.candidates:  # what was measured as a whole and drops too far is no proposal, whatever the sum says
            if self._measured_drop(name) > budgets.get("max_accuracy_drop", math.inf):
                limits[f"{name} everywhere"] = len(layers) - 1
                for option in itertools.chain(*options):
                    option[f"{name} everywhere"] = float(option["candidate"] == name)
        try:
            choice = choose(options, self._objectives(budgets), limits)
        except Unreachable as error:
            raise ValueError(self._unreachable(budgets, error.least)) from None
        return self._mapping([options[i][j]["row"] for i, j in enumerate(choice)], layers)

    def predict(self, mapping: QConfigMapping) -> dict[str, float | None]:
        """{"metric", "drop", "latency_ms", "size_mb"} of a mapping that `propose` returned, as the sum over its layers."""
        mapping = as_mapping(mapping)
        layers, options = self._options()
        return self._prediction([_option_of(mapping, layer, choices) for layer, choices in zip(layers, options)])

    def measure(
        self, mapping: QConfigMapping, model: nn.Module, example_inputs, calibration: Iterable | None = None, *, evaluate=None
    ) -> dict[str, float | None]:
        """Converts `model` once by such a mapping and measures what `predict` adds up from single layers: {"latency_ms",
        "float_latency_ms", "metric"}. The float model is timed in turn with it, because machines change their speed; the metric is
        None without `evaluate`. The arguments are those of the scan.

        A prediction knows nothing of what stands between layers: a tensor that a float layer passes to an integer one, or the other
        way, is converted, a residual sum or an activation joins its layer only where both are integers, and runs of integer layers
        that a float one cuts share no memory. Where precisions alternate the measured latency is therefore the larger one.
        """
        mapping = as_mapping(mapping)
        from torchquant.analysis.proposal import measure_proposal  # here: it needs the converter, a report alone does not

        if set(self.choices(mapping).values()) == {"float"}:  # what the scan began with
            return {"latency_ms": self.float_latency_ms, "float_latency_ms": self.float_latency_ms, "metric": self.float_metric}
        return measure_proposal(mapping, model, example_inputs, calibration, evaluate)

    def choices(self, mapping: QConfigMapping) -> dict[str, str]:
        """Layer -> the candidate, or "float", that such a mapping gives it."""
        mapping = as_mapping(mapping)
        layers, options = self._options()
        return {layer: _option_of(mapping, layer, choices)["candidate"] for layer, choices in zip(layers, options)}

    def pareto(self, quantity: str | None = None) -> list[dict]:
        """Configurations of which none is better in accuracy and no worse in `quantity`, "latency_ms" (if it was measured, the
        default) or "size_mb": what `predict` gives for each, and "choices" (layer -> candidate or "float")."""
        quantity = quantity or ("size_mb" if self.float_latency_ms is None else "latency_ms")
        if quantity not in ("latency_ms", "size_mb") or (quantity == "latency_ms" and self.float_latency_ms is None):
            raise ValueError(f"pareto: quantity must be 'size_mb', or 'latency_ms' if that was measured; got {quantity!r}")
        from torchquant.analysis.mixed_precision import Unreachable, choose

        layers, options = self._options()
        least = sum(min(option[quantity] for option in choices) for choices in options)
        most = sum(choices[0][quantity] for choices in options)
        points = []
        for step in range(_PARETO_POINTS + 1):
            limit = least + (most - least) * step / _PARETO_POINTS
            try:
                choice = choose(options, [*self._accuracy(), quantity], {quantity: max(limit, least)})
            except Unreachable:
                continue
            chosen = [options[i][j] for i, j in enumerate(choice)]
            point = self._prediction(chosen)
            point["choices"] = {layer: option["candidate"] for layer, option in zip(layers, chosen)}
            if not points or point["choices"] != points[-1]["choices"]:
                points.append(point)
        return points

    def _check_budgets(self, budgets: dict[str, float]) -> None:
        if not budgets:
            raise ValueError(f"propose: give at least one of {', '.join(_LIMITS)}")
        for name, value in budgets.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"propose: {name} must be a finite number of at least 0; got {value}")
        if "max_latency_ms" in budgets and self.float_latency_ms is None:
            raise ValueError("propose: max_latency_ms needs a scan with measure_latency=True")
        if "max_accuracy_drop" in budgets and self.float_metric is None:
            raise ValueError("propose: max_accuracy_drop needs a scan with an evaluate function")

    def _accuracy(self) -> list[str]:
        return ["noise"] if self.float_metric is None else ["drop", "noise"]

    def _objectives(self, budgets: dict[str, float]) -> list[str]:
        if "max_accuracy_drop" not in budgets:
            return self._accuracy()
        return ["size_mb" if self.float_latency_ms is None else "latency_ms", *self._accuracy()]

    def _options(self) -> tuple[list[str], list[list[dict]]]:
        """(layers, per layer what it can be): float first. A candidate that conversion leaves float is no option."""
        layers = list(dict.fromkeys(row["layer"] for row in self.rows))
        factors = {name: self._share_of_gain(name) for name in self.candidates}
        options = []
        for layer in layers:
            rows = [row for row in self.rows if row["layer"] == layer]
            plain = {"candidate": "float", "row": None, "drop": 0.0, "noise": 0.0, "latency_ms": 0.0, "size_mb": rows[0]["float_mb"]}
            options.append([plain, *(_option(row, factors[row["candidate"]]) for row in rows if row["kernel"] != "")])
        return layers, options

    def _share_of_gain(self, candidate: str) -> float:
        """What a millisecond that a layer gains by itself gains in the model: measured alone, a layer finds its weights in the
        cache, and the model holds more than its layers. The whole model was measured both ways."""
        gains = self.candidates[candidate]["layers_gain_ms"]
        if self.float_latency_ms is None or gains <= 0:
            return 1.0
        return max(self.float_latency_ms - self.candidates[candidate]["latency_ms"], 0.0) / gains

    def _totals_of_the_rest(self) -> dict[str, float]:
        """What a model of float layers has beside them: options count latency as a difference to it, size in full."""
        layers = {row["layer"]: row["float_mb"] for row in self.rows}
        return {"latency_ms": self.float_latency_ms or 0.0, "size_mb": self.float_size_mb - sum(layers.values())}

    def _prediction(self, chosen: list[dict]) -> dict[str, float | None]:
        rest = self._totals_of_the_rest()
        uniform = {option["candidate"] for option in chosen}
        drop = self._measured_drop(*uniform) if len(uniform) == 1 else sum(option["drop"] for option in chosen)
        signed = -drop if self.higher_is_better else drop
        return {
            "metric": None if self.float_metric is None else self.float_metric + signed,
            "drop": None if self.float_metric is None else drop,
            "latency_ms": None if self.float_latency_ms is None else rest["latency_ms"] + sum(option["latency_ms"] for option in chosen),
            "size_mb": rest["size_mb"] + sum(option["size_mb"] for option in chosen),
        }

    def _measured_drop(self, candidate: str) -> float:
        """Of the model that has this candidate everywhere, which was evaluated as a whole."""
        if candidate == "float" or self.float_metric is None:
            return 0.0
        change = self.float_metric - self.candidates[candidate]["metric"]
        return change if self.higher_is_better else -change

    def _unreachable(self, budgets: dict[str, float], least: dict[str, float | None]) -> str:
        parts = []
        for name, value in budgets.items():
            quantity, text = _LIMITS[name]
            reachable = least[quantity]
            if reachable is None:
                parts.append(f"{name}={value:g} leaves nothing for the other budgets")
            else:
                reachable += self._totals_of_the_rest().get(quantity, 0.0)
                given = " with the other budgets" if len(budgets) > 1 else ""
                parts.append(f"{name}={value:g}, and the least reachable{given} is {text.format(reachable)}")
        return "propose: the budget cannot be met: " + "; ".join(parts)

    def _mapping(self, rows: list[dict | None], layers: list[str]) -> QConfigMapping:
        """Every scanned layer by name: one that stays float would otherwise take its parent's QConfig."""
        modules = {row["layer"]: row["modules"] for row in self.rows}
        mapping = QConfigMapping()
        for layer, row in zip(layers, rows):
            for path in modules[layer]:
                mapping.set_module_name(re.escape(path), None if row is None else QConfig.from_dict(row["qconfig"]))
        return mapping

    # ---- showing

    def table(self):
        """The ranking, for a terminal."""
        table = new_table(title="Sensitivity of layers", caption=self._caption())
        for heading in ("layer", "kind", "QConfig"):
            table.add_column(heading, overflow="fold")
        for heading in ("drop alone", "SQNR alone", "gain if float", "SQNR if float", "float ms", "quantized ms", "MB"):
            table.add_column(heading, justify="right")
        for row in self.ranking:
            table.add_row(
                row["layer"], row["kind"], row["candidate"],
                _number(row["alone_drop"], "{:+.4g}"), _number(row["alone_sqnr_db"], "{:.1f} dB"),
                _number(row["but_one_gain"], "{:+.4g}"), _number(row["but_one_sqnr_db"], "{:.1f} dB"),
                _number(row["float_ms"], "{:.3f}"), "stays float" if row["kernel"] == "" else _number(row["quantized_ms"], "{:.3f}"),
                f"{row['float_mb']:.3f} > {row['quantized_mb']:.3f}",
            )  # fmt: skip
        return table

    def _caption(self) -> str:
        models = {"float": {"metric": self.float_metric, "sqnr_db": None, "latency_ms": self.float_latency_ms}, **self.candidates}
        lines = []
        texts = {"metric": "metric {:.5g}", "sqnr_db": "{:.1f} dB", "latency_ms": "{:.3f} ms"}
        for name, model in models.items():
            parts = [_number(model[quantity], text) for quantity, text in texts.items()]
            lines.append(f"{name}: {', '.join(part for part in parts if part) or 'not evaluated'}")
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike) -> None:
        """Draws the drop of each layer and the accuracy that each latency (or size) allows into a file: .png, .svg or .pdf."""
        from torchquant.analysis.sensitivity_plot import plot

        plot(self, path)

    # ---- keeping

    def to_dict(self) -> dict:
        """Plain values, for JSON, which has no infinity: an infinite SQNR is "inf" or "-inf" there."""
        values = _map_numbers(asdict(self), json_number)
        return {"format": _FORMAT, **values, "ranking": [[row["layer"], row["candidate"]] for row in self.ranking]}

    @classmethod
    def from_dict(cls, values: dict) -> SensitivityReport:
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            raise ValueError(f"SensitivityReport.from_dict: expected what to_dict gives, with format {_FORMAT!r}")
        report = cls(**copy.deepcopy({item.name: values[item.name] for item in fields(cls)}))
        for row in report.rows:
            for name in ("alone_sqnr_db", "but_one_sqnr_db"):
                row[name] = None if row[name] is None else float(row[name])
        for candidate in report.candidates.values():
            candidate["sqnr_db"] = float(candidate["sqnr_db"])
        return report

    def save(self, path: str | os.PathLike) -> None:
        """Writes JSON; a file that was there is replaced once the new one is whole."""
        write_text(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> SensitivityReport:
        """Reads what `save` wrote."""
        try:
            values = json.loads(Path(path).read_text())
        except ValueError as error:
            raise ValueError(f"SensitivityReport.load: '{path}' is not JSON: {error}") from None
        try:
            return cls.from_dict(values)
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"SensitivityReport.load: '{path}' is not a saved SensitivityReport ({error})") from None


def _drop(row: dict) -> float:
    """What quantizing the layer costs; 0 where there is no metric."""
    drop = row["but_one_gain"] if row["alone_drop"] is None else row["alone_drop"]
    return 0.0 if drop is None else drop


def _sqnr_db(row: dict) -> float:
    """Of the layer alone; where only all but each were scanned, a high SQNR without it means that it hurts."""
    return -row["but_one_sqnr_db"] if row["alone_sqnr_db"] is None else row["alone_sqnr_db"]


def _option(row: dict, share_of_gain: float) -> dict:
    return {
        "candidate": row["candidate"],
        "row": row,
        # A layer that seems to help does so by chance: it costs nothing, and cannot pay for another.
        "drop": max(_drop(row), 0.0),
        # Of the output, relative to it; of independent errors it adds up. 0 where quantization changes nothing.
        "noise": 10 ** (-max(_sqnr_db(row), -_MOST_DB) / 10),
        "latency_ms": -(row["latency_gain_ms"] or 0.0) * share_of_gain,
        "size_mb": row["quantized_mb"],
    }


def _option_of(mapping: QConfigMapping, layer: str, choices: list[dict]) -> dict:
    modules = next((option["row"]["modules"] for option in choices if option["row"]), None)
    if modules is None:  # float is all that it can be
        return choices[0]
    wanted = mapping.default
    for entry in mapping.to_dict()["names"]:
        if any(re.fullmatch(entry["name"], path) for path in modules):
            wanted = None if entry["qconfig"] is None else QConfig.from_dict(entry["qconfig"])
    for option in choices:
        if wanted == (None if option["row"] is None else QConfig.from_dict(option["row"]["qconfig"])):
            return option
    raise ValueError(f"predict: the mapping gives layer {layer!r} a QConfig that was not scanned")


def _map_numbers(value, change):
    if isinstance(value, dict):
        return {key: _map_numbers(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_numbers(item, change) for item in value]
    return change(value) if isinstance(value, float) else value


def json_number(value):
    """JSON knows no infinity; float() reads "inf", "-inf" and "nan"."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def drawable_db(sqnr_db: float) -> float:
    return min(max(sqnr_db, -_MOST_DB), _MOST_DB)


def _number(value: float | None, text: str) -> str:
    return "" if value is None else _NOT_FINITE.get(value) or text.format(value)
