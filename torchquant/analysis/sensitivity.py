"""sensitivity_scan: what quantizing each layer costs in accuracy and gains in latency and size. Public as tq.sensitivity_scan."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn
from torch.utils import _pytree as pytree

from torchquant import _C
from torchquant.analysis import processes
from torchquant.analysis.processes import Processes
from torchquant.analysis.scan_candidate import Candidate, ScannedLayer, hash_tensor, hashing_inputs
from torchquant.analysis.scan_journal import Journal, same
from torchquant.analysis.sensitivity_report import SensitivityReport
from torchquant.analysis.sqnr import sqnr_db
from torchquant.errors import nearest
from torchquant.prepare.example_run import evaluating, repeatable, unpack
from torchquant.progress import ProgressBar
from torchquant.qconfig import QConfig, QConfigMapping, as_mapping
from torchquant.trees import tensors_in

MODES = ("each_alone", "each_but_one", "both")

# What is evaluated: (candidate, state, layer). The state is "float", "all", "alone" or "but_one"; the first two have no layer.
Task = tuple[str, str, str]


def sensitivity_scan(
    model: nn.Module,
    example_inputs,
    calibration: Iterable | None,
    evaluate: Callable[[nn.Module], float] | None,
    qconfig: QConfig | QConfigMapping | Mapping[str, QConfig | QConfigMapping],
    *,
    mode: str = "both",
    layers: Iterable[str] | None = None,
    higher_is_better: bool = True,
    measure_latency: bool = True,
    sqnr_batches: Iterable | None = None,
    resume: str | os.PathLike | None = None,
) -> SensitivityReport:
    """Quantizes each layer alone, and all but each, and reports what that does to the metric, the output and the latency.

    The model is prepared and calibrated once per QConfig; a layer is then quantized by switching its fake-quants on: those on
    its weights and on what it reads. (Quantizing one layer at a time is how Wu et al., "Integer quantization for deep learning
    inference", 2020, section 6.1, find the layers to leave in float.) Under torchrun, or in a process group that is there
    already, each process evaluates its share and all return the same report.

    Args:
        model: the float model; it is not changed.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments. Latency is measured on them.
        calibration: batches as `torchquant.calibrate` takes them; None for QConfigs that need none.
        evaluate: takes a model in eval mode that is called like the float one and returns the metric, a finite number. Runs
            without gradients and from the same random seed each time. None ranks by SQNR alone.
        qconfig: one QConfig or QConfigMapping, or a dict of several by name, such as ``{"int8": int8_static(), "int4":
            int4_weight_static()}``; each is scanned and float is always a choice.
        mode: "each_alone", "each_but_one" or "both".
        layers: regular expressions, as in QConfigMapping, that pick the layers to scan; None for all.
        higher_is_better: False for a metric such as a loss or perplexity.
        measure_latency: time every layer as floats and as the integer op that ships.
        sqnr_batches: inputs on which the output's signal-to-quantization-noise ratio is taken; by default example_inputs.
        resume: a file, such as "scan.jsonl", to which each finished evaluation is appended. A scan that finds its own file
            there goes on where that ended.

    Raises:
        ValueError: a metric that is no finite number, names that match no layer, a journal of another scan.
        RuntimeError: another process writes the same journal.
    """
    started = time.perf_counter()
    if mode not in MODES:
        raise ValueError(f"sensitivity_scan: mode must be one of {', '.join(map(repr, MODES))}; got {mode!r}")
    if evaluate is not None and not callable(evaluate):
        raise TypeError(f"sensitivity_scan: evaluate must be a function of a model, or None; got a {type(evaluate).__name__}")
    with processes.join() as those, contextlib.ExitStack() as files:
        scan = _Scan(those, evaluate, higher_is_better)
        those.together(lambda: scan.prepare(model, example_inputs, calibration, named_candidates(qconfig), layers, sqnr_batches))
        scan.check_processes_agree()
        if resume is not None:
            those.together(lambda: scan.open_journal(resume, files))
        scan.start()
        if measure_latency:
            scan.measure_latency()
        results = scan.run(_states(mode))
        return scan.report(results, mode, time.perf_counter() - started)


def _refuse_object_types(candidate) -> None:
    """A proposal chooses between layers, by name; what it would not hold must not be measured with it."""
    if isinstance(candidate, QConfigMapping) and candidate._object_types:
        raise ValueError(
            "sensitivity_scan: a QConfigMapping with set_object_type cannot be scanned, because proposals choose between layers; "
            "scan without it and call set_object_type on the proposed mapping"
        )


def named_candidates(qconfig) -> dict[str, QConfig | QConfigMapping]:
    """The QConfigs by name; a single one is called after the bits of its weights."""
    if isinstance(qconfig, QConfig):
        return {"fp8" if qconfig.weight.float8 else f"int{qconfig.weight.bits}": qconfig}
    if not isinstance(qconfig, Mapping):
        as_mapping(qconfig)  # refuses what is no QConfig at all
        _refuse_object_types(qconfig)
        return {"quantized": qconfig}
    if not qconfig or not all(isinstance(name, str) and name != "float" for name in qconfig):
        raise ValueError(f"sensitivity_scan: qconfig must name at least one QConfig, none of them 'float'; got {list(qconfig)!r}")
    for candidate in qconfig.values():
        as_mapping(candidate)
        _refuse_object_types(candidate)
    return dict(qconfig)


def _states(mode: str) -> tuple[str, ...]:
    return {"each_alone": ("alone",), "each_but_one": ("but_one",), "both": ("alone", "but_one")}[mode]


class _Scan:
    def __init__(self, those: Processes, evaluate: Callable | None, higher_is_better: bool):
        self.processes, self.evaluate, self.higher_is_better = those, evaluate, higher_is_better
        self.candidates: dict[str, Candidate] = {}
        self.selected: dict[str, list[ScannedLayer]] = {}  # candidate -> the layers to scan
        self.journal: Journal | None = None
        self.resume = None  # its path
        self.entries: list[dict] = []  # what it holds
        self.times: dict[str, dict] = {}  # candidate -> latencies

    # ---- before the first evaluation

    def prepare(self, model, example_inputs, calibration, qconfigs, patterns, sqnr_batches) -> None:
        if calibration is not None and len(qconfigs) > 1 and not hasattr(calibration, "__len__"):
            calibration = list(calibration)  # a generator gives its batches only once
        for name, qconfig in qconfigs.items():
            candidate = Candidate(name, model, example_inputs, qconfig)
            candidate.calibrate(calibration, list(self.candidates.values()))
            self.candidates[name] = candidate
        self._select(patterns)
        self.model_bytes = _bytes_of(model)
        self.first = next(iter(self.candidates.values()))
        self.sqnr_batches = [example_inputs] if sqnr_batches is None else list(sqnr_batches)
        self.references = self._outputs(self.first)
        signal = sum(_C.signal_and_noise(reference, reference)[0] for reference in self.references)
        if not 0 < signal < math.inf:
            raise ValueError(
                f"sensitivity_scan: the float model's outputs must be finite and not all zero; the sum of their squares is {signal}"
            )
        self.identity = {
            "model": _model_digest(model),
            "example inputs": _inputs_digest([example_inputs]),
            "inputs for SQNR": _inputs_digest(self.sqnr_batches),
            "QConfig": {name: as_mapping(qconfig).to_dict() for name, qconfig in qconfigs.items()},
            "calibrated range": {f"{name}: {path}": range_ for name, c in self.candidates.items() for path, range_ in c.ranges().items()},
            "higher_is_better": self.higher_is_better,
        }

    def _select(self, patterns: Iterable[str] | None) -> None:
        names = list(dict.fromkeys(layer.name for candidate in self.candidates.values() for layer in candidate.layers))
        if isinstance(patterns, str):
            patterns = [patterns]
        chosen = set(names)
        if patterns is not None:
            chosen = {name for pattern in patterns for name in _matching(pattern, names)}
        for name, candidate in self.candidates.items():
            self.selected[name] = [layer for layer in candidate.layers if layer.name in chosen]

    def check_processes_agree(self) -> None:
        identities = self.processes.gather(self.identity)
        for rank, identity in enumerate(identities):
            for key, value in identity.items():
                if not same(value, identities[0][key]):
                    raise RuntimeError(
                        f"sensitivity_scan: the {key} of process {rank} is not that of process 0; build model and data the same "
                        "way in each (the same random seed, the same files)"
                    )

    def open_journal(self, path, files: contextlib.ExitStack) -> None:
        self.resume = path
        self.journal = Journal(path, self.processes)
        files.callback(self.journal.close)

    def start(self) -> None:
        """Evaluates the float model, which tells whether the evaluation is the journal's, and reads the journal."""
        self.float_result = self.processes.from_first(self._run_float)
        self.identity["evaluation data"] = self.float_result.pop("inputs")
        self.identity["metric of the float model"] = self.float_result["metric"]
        read = self.processes.together(lambda: self.journal.open_for(self.identity) if self.journal else [])
        self.entries = read[0]  # each process has read the files of all; the first one's view is everybody's

    def measure_latency(self) -> None:
        """In the first process alone, while the others wait and leave it the machine."""
        times = self.processes.from_first(self._measure)
        for name, candidate in self.candidates.items():
            candidate.set_times(times[name])
        self.times = times

    def _measure(self) -> dict[str, dict]:
        times = {entry["candidate"]: entry["latency"] for entry in self.entries if "latency" in entry}
        waiting = [candidate for candidate in self.candidates.values() if candidate.name not in times]
        with ProgressBar("measuring layers", total=sum(len(candidate.layers) for candidate in waiting)) as bar:
            for candidate in waiting:
                times[candidate.name] = candidate.measure(times, bar.advance)
                self._write({"candidate": candidate.name, "latency": times[candidate.name]})
        return times

    # ---- evaluations

    def _run_float(self) -> dict:
        digest = hashlib.sha256()
        with hashing_inputs(self.first.prepared, digest):
            result = self._metric(self.first, "the float model")
        return {**result, "inputs": digest.hexdigest()}

    def run(self, states: tuple[str, ...]) -> dict[Task, dict]:
        tasks = self._tasks(states)
        finished = {tuple(entry["task"]): entry for entry in self.entries if "task" in entry}
        waiting = [task for task in tasks if task not in finished]
        share = waiting[self.processes.rank :: self.processes.size]
        own = self.processes.together(lambda: self._run_share(share))
        found = {**finished, **{task: result for results in own for task, result in results.items()}}
        return {task: found[task] for task in tasks}

    def _tasks(self, states: tuple[str, ...]) -> list[Task]:
        tasks = []
        for name, layers in self.selected.items():
            tasks.append((name, "all", ""))
            tasks += [(name, state, layer.name) for layer in layers for state in states]
        return tasks

    def _run_share(self, tasks: list[Task]) -> dict[Task, dict]:
        results = {}
        with ProgressBar("scanning layers", total=len(tasks)) as bar:
            for task in tasks:
                results[task] = self._run_task(task)
                self._write({"task": list(task), **results[task]})
                bar.advance()
        return results

    def _run_task(self, task: Task) -> dict:
        name, state, layer_name = task
        candidate = self.candidates[name]
        layer = next((layer for layer in candidate.layers if layer.name == layer_name), None)
        if state == "all":
            on, what = candidate.all_fake_quants(), f"all layers in {name!r}"
        elif state == "alone":
            on, what = candidate.alone(layer), f"layer {layer_name!r} alone in {name!r}"
        else:
            on, what = candidate.but_one(layer), f"all layers but {layer_name!r} in {name!r}"
        candidate.switch_on(on)
        try:
            return {**self._metric(candidate, what), "sqnr_db": self._sqnr_db(candidate)}
        finally:
            candidate.switch_on(())

    def _metric(self, candidate: Candidate, what: str) -> dict:
        if self.evaluate is None:
            return {"metric": None, "seconds": 0.0}
        started = time.perf_counter()
        with evaluating(candidate.prepared), torch.no_grad(), repeatable():
            value = self.evaluate(candidate.prepared)
        seconds = time.perf_counter() - started
        return {"metric": self._checked(value, what), "seconds": seconds}

    def _checked(self, value, what: str) -> float:
        kept = f"finished evaluations are kept in '{self.resume}'" if self.resume else "resume='scan.jsonl' would keep finished evaluations"
        try:
            metric = float(value)
        except (TypeError, ValueError, RuntimeError):
            kind = type(value).__name__
            raise ValueError(f"sensitivity_scan: evaluate must return a number; with {what} it returned a {kind} ({kept})") from None
        if not math.isfinite(metric):
            raise ValueError(f"sensitivity_scan: evaluate must return a finite number; with {what} it returned {metric} ({kept})")
        return metric

    def _outputs(self, candidate: Candidate) -> list[list[torch.Tensor]]:
        outputs = []
        with evaluating(candidate.prepared), torch.no_grad(), repeatable():
            for batch in self.sqnr_batches:
                args, kwargs = unpack(batch, "sensitivity_scan: sqnr_batches")
                outputs.append(tensors_in(candidate.prepared(*args, **kwargs)))
        return outputs

    def _sqnr_db(self, candidate: Candidate) -> float:
        signal = noise = 0.0
        for reference, actual in zip(self.references, self._outputs(candidate)):
            more_signal, more_noise = _C.signal_and_noise(reference, actual)
            signal, noise = signal + more_signal, noise + more_noise
        return sqnr_db(signal, noise)

    def _write(self, entry: dict) -> None:
        if self.journal is not None:
            self.journal.append(entry)

    # ---- the result

    def report(self, results: dict[Task, dict], mode: str, seconds: float) -> SensitivityReport:
        latency = next(iter(self.times.values()))["float_ms"] if self.times else None
        candidates = {}
        for name in self.candidates:
            everything, times = results[name, "all", ""], self.times.get(name)
            candidates[name] = {
                "metric": everything["metric"],
                "sqnr_db": everything["sqnr_db"],
                "latency_ms": times and times["quantized_ms"],
                "layers_gain_ms": times and sum(float_ms - quantized_ms for float_ms, quantized_ms in times["layers"].values()),
            }
        rows = [self._row(name, layer, results) for name, layers in self.selected.items() for layer in layers]
        evaluations = [self.float_result, *results.values()]
        return SensitivityReport(
            rows=rows,
            candidates=candidates,
            float_metric=self.float_result["metric"],
            float_latency_ms=latency,
            float_size_mb=self.model_bytes / 1e6,
            higher_is_better=self.higher_is_better,
            mode=mode,
            seconds={
                "scan": seconds,
                "evaluations": sum(result["seconds"] for result in evaluations),
                "evaluation_count": len(evaluations),
            },
        )

    def _row(self, name: str, layer: ScannedLayer, results: dict[Task, dict]) -> dict:
        alone = results.get((name, "alone", layer.name), {})
        but_one = results.get((name, "but_one", layer.name), {})
        everything = results[name, "all", ""]
        measured = layer.float_ms is not None
        return {
            "layer": layer.name,
            "kind": layer.kind,
            "candidate": name,
            "alone_metric": alone.get("metric"),
            "alone_drop": self._drop(self.float_result["metric"], alone.get("metric")),
            "alone_sqnr_db": alone.get("sqnr_db"),
            "but_one_metric": but_one.get("metric"),
            "but_one_gain": self._drop(but_one.get("metric"), everything["metric"]),
            "but_one_sqnr_db": but_one.get("sqnr_db"),
            "float_ms": layer.float_ms,
            "quantized_ms": layer.quantized_ms,
            "latency_gain_ms": layer.float_ms - layer.quantized_ms if measured else None,
            "float_mb": layer.float_bytes / 1e6,
            "quantized_mb": layer.quantized_bytes / 1e6,
            "kernel": layer.kernel,
            "modules": layer.modules,
            "qconfig": self.candidates[name].qconfig_of(layer).to_dict(),
        }

    def _drop(self, before: float | None, after: float | None) -> float | None:
        if before is None or after is None:
            return None
        return before - after if self.higher_is_better else after - before


def _matching(pattern: str, names: list[str]) -> list[str]:
    """The layers whose path, or a parent's, the pattern matches from end to end."""
    try:
        expression = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"sensitivity_scan: layers must hold regular expressions, got {pattern!r}: {error}") from None
    found = [name for name in names if any(expression.fullmatch(path) for path in _path_and_parents(name))]
    if not found:
        plain = pattern.replace("\\", "")
        raise ValueError(f"sensitivity_scan: {pattern!r} matches no layer; nearest: {nearest(plain, names)}")
    return found


def _path_and_parents(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _bytes_of(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in {*model.parameters(), *model.buffers()})


def _model_digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(tensor, torch.Tensor):
            hash_tensor(digest, tensor)
    return digest.hexdigest()


def _inputs_digest(batches: list) -> str:
    digest = hashlib.sha256()
    for leaf in pytree.tree_leaves(batches):
        hash_tensor(digest, leaf) if isinstance(leaf, torch.Tensor) else digest.update(repr(leaf).encode())
    return digest.hexdigest()
