"""What running a model costs: latency in interleaved bursts, throughput, and cold start and memory in fresh processes. Called by
validate.

Both models are timed by the same C++ loop (csrc/runtime/measure.h) wherever the float one is TorchScript or can be traced, so that
Python's own time does not count against it.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from torchquant import _C
from torchquant.prepare.example_run import evaluating
from torchquant.progress import ProgressBar
from torchquant.quantized_model import QuantizedModel
from torchquant.tracing import give_flat_interface

BURST = 10  # runs of one model before it is the other's turn
WARM_UP = 10
PROCESSES = 3  # fresh ones for each model; the median counts


class Timed:
    """A model and inputs to time it on: in C++ where it is TorchScript, else called from Python (`why_python` says why)."""

    def __init__(self, name: str, model: torch.nn.Module, args: tuple, kwargs: dict):
        self.name = name
        self.why_python = ""
        self.model, self.args, self.kwargs = model, args, kwargs
        self.script, self.inputs = self._scripted()
        if self.script is not None and not all(isinstance(value, torch.Tensor) for value in self.inputs):
            self.why_python = "an input is no plain tensor"

    @property
    def timed_by(self) -> str:
        return f"Python ({self.why_python})" if self.why_python else "C++"

    def times_ms(self, warm_up: int, runs: int) -> list[float]:
        with torch.inference_mode(), in_eval_mode(self.model):
            if not self.why_python:
                return _C.time_runs(self.script._c, list(self.inputs), warm_up, runs)
            for _ in range(warm_up):
                self.model(*self.args, **self.kwargs)
            return [self._time_call() for _ in range(runs)]

    def save(self, path: str) -> None:
        """The TorchScript file that would be deployed."""
        if isinstance(self.model, QuantizedModel):
            self.model.save(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                torch.jit.save(self.script, path)

    def _time_call(self) -> float:
        started = time.perf_counter()
        self.model(*self.args, **self.kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - started)

    def _scripted(self) -> tuple[torch.jit.ScriptModule | None, tuple]:
        if isinstance(self.model, QuantizedModel):
            given = self.model._tensor_arguments(self.args, self.kwargs)
            return self.model.script, tuple(given[name] for name in self.model.tensor_names if name in given)
        if isinstance(self.model, torch.jit.ScriptModule):
            names = [argument.name for argument in self.model.forward.schema.arguments[1:]]
            given = {**dict(zip(names, self.args)), **self.kwargs}
            return self.model, tuple(given[name] for name in names if name in given)
        try:
            return _traced(self.model, self.args, self.kwargs)
        except Exception as error:  # whatever tracing or the model raises
            self.why_python = f"tracing failed: {str(error).strip().splitlines()[-1]}"
            return None, ()


def _traced(model: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[torch.jit.ScriptModule, tuple]:
    """Frozen, as someone who deploys the float model would have it: batch norms are folded."""
    model = copy.deepcopy(model).eval()
    inputs = give_flat_interface(model, args, kwargs)
    device = device_of(model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript's deprecation, and the tracer's guesses: only this very input will run
        script = torch.jit.trace(model, tuple(tensor.to(device) for tensor in inputs), check_trace=False, strict=False)
        return torch.jit.freeze(script), tuple(tensor.to(device) for tensor in inputs)


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the model's inputs belong."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def in_eval_mode(model: torch.nn.Module):
    """A context. Frozen TorchScript has no mode left to change."""
    return evaluating(model) if hasattr(model, "training") else contextlib.nullcontext()


def measure_latency(models: list[Timed], runs: int, description: str) -> dict[str, dict]:
    """Latency of each model by its name: p50_ms, p95_ms, p99_ms, mean_ms, min_ms and runs.

    The models take turns in bursts, so that a machine that slows down or is shared slows all of them.
    """
    times: dict[str, list[float]] = {model.name: [] for model in models}
    with ProgressBar(description, total=runs * len(models)) as bar:
        for model in models:
            model.times_ms(0, WARM_UP)
        while (left := runs - len(times[models[0].name])) > 0:
            for model in models:
                burst = min(BURST, left)
                times[model.name] += model.times_ms(1, burst)  # one uncounted: the other model emptied the caches
                bar.advance(burst)
            models = models[::-1]  # who goes first alternates too
    return {name: _C.summarize_times(values) for name, values in times.items()}


def measure_fresh_processes(models: list[Timed], processes: int) -> dict[str, dict]:
    """By name: bytes of the file, and the medians of cold_start_ms (load and first run, imports not counted), peak_memory_bytes (of
    the whole process) and model_memory_bytes (of that, what came after the imports). A model that is no TorchScript has only the
    bytes of its tensors; `not_measured` says why the medians are missing."""
    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory(prefix="torchquant-") as folder, ProgressBar("validating: fresh processes", processes * len(models)) as bar:
        for model in models:
            results[model.name] = {"bytes": _write(model, Path(folder)), "not_measured": model.why_python if model.script is None else ""}
        models = [model for model in models if model.script is not None]
        facts: dict[str, list[dict]] = {model.name: [] for model in models}
        for _ in range(processes):
            for model in models:
                try:
                    facts[model.name].append(_fresh_run(model.name, Path(folder)))
                except RuntimeError as error:  # the accuracy that was found is not lost for this
                    results[model.name]["not_measured"] = str(error)
                bar.advance()
    for name, runs in facts.items():
        for key in runs[0] if runs else ():
            results[name][key] = statistics.median(run[key] for run in runs)
    return results


def _write(model: Timed, folder: Path) -> int:
    if model.script is None:
        return sum(tensor.nbytes for tensor in (*model.model.parameters(), *model.model.buffers()))
    file = folder / f"{model.name}.pt"
    model.save(str(file))
    torch.save(tuple(model.inputs), folder / f"{model.name}.inputs")
    return file.stat().st_size


def _fresh_run(name: str, folder: Path) -> dict:
    package_root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "torchquant.analysis.fresh_process", name, folder / f"{name}.pt", folder / f"{name}.inputs"]
    done = subprocess.run([*command, str(torch.get_num_threads())], capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RuntimeError(f"it does not run in a fresh process: {last}")
    return json.loads(done.stdout.splitlines()[-1])
