"""choose_observers: for every layer the observer whose range costs its output least, measured on data."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace

import torch
from torch import nn

from torchquant.analysis.layer_values import LayerOrigins, fake_quants_set, run_layers
from torchquant.analysis.sqnr import sqnr_db
from torchquant.batches import check_iterable, checked_batches
from torchquant.calibrate import calibrate, static_fake_quants
from torchquant.observers import MovingAverageMinMaxObserver, make_observer
from torchquant.prepare import prepare
from torchquant.prepare.example_run import unpack
from torchquant.prepare.quantized_parameter import weight_fake_quants
from torchquant.progress import ProgressBar
from torchquant.qconfig import OBSERVERS, QConfig, QConfigMapping, as_mapping, exactly, with_entries
from torchquant.shown_as_table import ShownAsTable, new_table

CANDIDATES = ("min_max", "percentile", "mse", "entropy")


@dataclass
class ObserverChoice:
    """Layers that share a range, and what each candidate did to their outputs."""

    layers: list[str]
    fake_quants: list[str]  # the tensors that they read, paths in the prepared model
    observer: str  # the choice
    default: str  # what the QConfig given would have taken
    sqnr_db: dict[str, float]  # per candidate: of the layers' outputs, their input quantized; infinite where nothing was lost

    @property
    def gain_db(self) -> float:
        """How much better the choice is than the default; 0 where the default was no candidate."""
        chosen, default = self.sqnr_db[self.observer], self.sqnr_db.get(self.default, math.nan)
        return chosen - default if math.isfinite(chosen - default) else 0.0

    def to_dict(self) -> dict:
        sqnr = {name: value if math.isfinite(value) else None for name, value in self.sqnr_db.items()}
        names = ("layers", "fake_quants", "observer", "default", "gain_db")
        return {**{name: getattr(self, name) for name in names}, "sqnr_db": sqnr}


class ObserverReport(ShownAsTable):
    """What `choose_observers` chose: ``rows`` has an ObserverChoice per group of layers that share a range."""

    _text_width = 140

    def __init__(self, rows: list[ObserverChoice]):
        self.rows = rows

    def to_dict(self) -> dict:
        """Plain values for JSON and reports; an SQNR that is not finite is None."""
        return {"rows": [row.to_dict() for row in self.rows]}

    def table(self):
        candidates = list(self.rows[0].sqnr_db) if self.rows else []
        table = new_table(title="Observers by the SQNR of what reads them (dB)")
        for heading in ("layers", "observer", "gain", *candidates):
            table.add_column(heading, overflow="fold", justify="left" if heading in ("layers", "observer") else "right")
        for row in self.rows:
            values = (f"[bold]{value:.1f}[/bold]" if name == row.observer else f"{value:.1f}" for name, value in row.sqnr_db.items())
            table.add_row(", ".join(row.layers), row.observer, f"{row.gain_db:.1f}", *values)
        return table


def choose_observers(model: nn.Module, example_inputs, batches, qconfig, *, candidates=CANDIDATES) -> QConfigMapping:
    """Measures, for every statically quantized layer, what each observer's range does to the layer's output, and takes the best.

    One pass over the batches collects histograms, from which all candidates take their ranges; a second one feeds every layer its
    float input, quantized once per candidate, and compares the outputs (the weights stay float, so that only the ranges compete). Layers
    whose ranges cannot differ, because their tensors share a fake-quant (a residual stream, a concatenation, a common input), get one
    observer: the one with the least sum of relative errors.

    Args:
        model: the float model. It is not changed.
        example_inputs: as for `prepare`.
        batches: a list or a DataLoader, which is read twice, of tensors, tuples of arguments or dicts of keyword arguments.
        qconfig: a QConfig or a QConfigMapping; whatever it says beside the activations' observers stays.
        candidates: names out of "min_max", "moving_average", "percentile" (the QConfig's), "mse" and "entropy"; of two that are
            equally good the first is taken.

    Returns:
        A QConfigMapping with an entry per layer; its `report` is an ObserverReport. For `prepare`: in training, an observer must follow
        the steps.

    Raises:
        TypeError, ValueError: for batches that can be read only once or are empty, unknown candidates, or a model without static layers.
    """
    _check_candidates(candidates)
    check_iterable(batches, "choose_observers", repeatable=True)
    mapping = as_mapping(qconfig)
    qconfigs = mapping.resolve(model)
    prepared = prepare(model, example_inputs, with_entries(mapping, _entries(_static(qconfigs, qconfigs), "mse")))
    paths = {module: path for path, module in prepared.named_modules()}
    layers = _static(qconfigs, dict.fromkeys(paths[module] for module, _, _ in weight_fake_quants(prepared)))
    if not layers:
        raise ValueError("choose_observers: no layer has a static activation range to choose (dynamic or weight-only QConfig)")
    ranges = _collect(prepared, batches, candidates)
    noise = _measure(prepared, batches, ranges)
    rows = [
        _choose(group, noise, candidates, qconfigs)
        for group in _groups(model, example_inputs, mapping, layers, prepared)
        if any(layer in group for _, layer in noise)
    ]
    chosen = {layer: row.observer for row in rows for layer in row.layers}
    result = with_entries(mapping, {exactly(path): _with_observer(layers[path], observer) for path, observer in chosen.items()})
    result.report = ObserverReport(rows)
    return result


def _check_candidates(candidates) -> None:
    allowed = [name for name in OBSERVERS if name != "auto"]
    if isinstance(candidates, str) or not candidates:
        raise ValueError(f"choose_observers: candidates must be several of {', '.join(allowed)}; got {candidates!r}")
    for name in candidates:
        if name not in allowed:
            raise ValueError(f"choose_observers: candidates must be out of {', '.join(allowed)}; got {name!r}")


def _static(qconfigs: dict, paths) -> dict[str, QConfig]:
    """The QConfigs, out of those of `paths`, that give an activation one range."""
    found = {path: qconfigs.get(path) for path in paths}
    return {path: qconfig for path, qconfig in found.items() if qconfig and qconfig.activation and not qconfig.activation.dynamic}


def _with_observer(qconfig: QConfig, observer: str, **changes) -> QConfig:
    return QConfig(qconfig.weight, replace(qconfig.activation, **{"observer": observer, "delayed": False, **changes}))


def _entries(layers: dict[str, QConfig], observer: str) -> dict[str, QConfig]:
    return {exactly(path): _with_observer(qconfig, observer) for path, qconfig in layers.items()}


def _collect(prepared, batches, candidates) -> dict[str, dict[str, tuple]]:
    """Fake-quant -> candidate -> (scale, zero_point), from one pass over the batches. A histogram serves all but the moving average."""
    fake_quants = static_fake_quants(prepared)
    averages = {path: make_observer(replace(fake_quant.spec, observer="moving_average")) for path, fake_quant in fake_quants.items()}
    hooks = []
    if "moving_average" in candidates:
        for path, fake_quant in fake_quants.items():
            hooks.append(fake_quant.register_forward_pre_hook(_watching(averages[path].to(fake_quant.scale.device))))
    try:
        calibrate(prepared, batches)
    finally:
        for hook in hooks:
            hook.remove()
    return {path: {name: _qparams(fake_quant, name, averages[path]) for name in candidates} for path, fake_quant in fake_quants.items()}


def _watching(observer):
    def watch(module, args):
        observer(args[0])

    return watch


def _qparams(fake_quant, candidate: str, average: MovingAverageMinMaxObserver):
    if candidate == "moving_average":
        return average.calculate_qparams()
    observer = make_observer(replace(fake_quant.spec, observer=candidate, delayed=False)).to(fake_quant.scale.device)
    seen = fake_quant.observer.state_dict()
    observer.load_state_dict({name: seen[name] for name in observer.state_dict()})
    return observer.calculate_qparams()


class _Measuring(LayerOrigins):
    """Runs the op of every layer again on its input as each candidate quantizes it."""

    def __init__(self, prepared, ranges, noise):
        super().__init__()
        self.specs = {path: fake_quant.spec for path, fake_quant in static_fake_quants(prepared).items()}
        self.ranges, self.noise = ranges, noise

    def layer_read(self, place, layers, position, func, args, kwargs, result):
        spec, expected = self.specs[place], result.double()
        for candidate, (scale, zero_point) in self.ranges[place].items():
            x = torch.ops.torchquant.fake_quantize(args[position], scale, zero_point, quant_min=spec.quant_min, quant_max=spec.quant_max)
            error = func(*args[:position], x, *args[position + 1 :], **kwargs).double() - expected
            for layer in layers:
                self.noise[place, layer][candidate] += float(error.square().sum())
        for layer in layers:
            self.noise[place, layer]["signal"] += float(expected.square().sum())


def _measure(prepared, batches, ranges) -> dict[tuple[str, str], dict[str, float]]:
    """(fake-quant, layer that reads it) -> candidate -> energy of the error of the layer's output; "signal" is the output's own."""
    noise = defaultdict(lambda: defaultdict(float))
    batches, total = checked_batches(batches, "choose_observers")
    with fake_quants_set(prepared, on=False), torch.no_grad(), ProgressBar("measuring observers", total) as bar:
        for index, batch in enumerate(batches):
            args, kwargs = unpack(batch, f"choose_observers: batch {index}")
            run_layers(prepared, args, kwargs, _Measuring(prepared, ranges, noise))
            bar.advance()
    return noise


def _groups(model, example_inputs, mapping, layers, prepared) -> list[list[str]]:
    """The layers, those together whose activations must share a range.

    Found by giving every layer a spec of its own: a tensor that then gets several fake-quants is read by the layers of all of them,
    directly or through sums and concatenations.
    """
    names, first_tag = list(layers), 1 << 12
    tagged = {exactly(name): _with_observer(layers[name], "mse", bins=first_tag + i) for i, name in enumerate(names)}
    probe = prepare(model, example_inputs, with_entries(mapping, tagged))
    together = defaultdict(list)
    for row in probe.torchquant_report.rows:
        if row["role"] == "activation" and row["fake_quant"]:
            spec = probe.get_submodule(row["fake_quant"]).spec
            if not spec.dynamic:
                together[row["name"]].append(names[spec.bins - first_tag])
    for path, module in prepared.named_modules(remove_duplicate=False):
        owner = path.rpartition(".")[0]
        if owner in layers and module in set(static_fake_quants(prepared).values()):
            together[id(module)].append(owner)
    return _joined(names, together.values())


def _joined(names: list[str], sets) -> list[list[str]]:
    """The classes of `names` in which the members of each set are equal."""
    root = {name: name for name in names}

    def find(name):
        while root[name] != name:
            name = root[name]
        return name

    for members in sets:
        for member in members[1:]:
            root[find(member)] = find(members[0])
    classes = defaultdict(list)
    for name in names:
        classes[find(name)].append(name)
    return list(classes.values())


def _choose(group, noise, candidates, qconfigs) -> ObserverChoice:
    errors = {key: values for key, values in noise.items() if key[1] in group and values["signal"] > 0}
    relative = {name: sum(values[name] / values["signal"] for values in errors.values()) / max(len(errors), 1) for name in candidates}
    sqnr = {name: sqnr_db(1.0, value) for name, value in relative.items()}
    places = list(dict.fromkeys(place for place, _ in errors))
    best = min(candidates, key=relative.__getitem__)
    return ObserverChoice(group, places, best, qconfigs[group[0]].activation.observer, sqnr)
