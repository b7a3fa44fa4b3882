"""What each method does on real work: accuracy and perplexity of converted models, three seeds, by one command.

    python benchmarks/methods.py                       # goes on where it stopped; writes benchmarks/results/methods.json
    python benchmarks/methods.py --workloads lm --seeds 0
    python benchmarks/methods.py --docs                # draws the tables of docs/methods.md from the results, runs nothing
    python benchmarks/methods.py --docs --check        # exits 1 if docs/methods.md is not what the results say

A row is one (workload, seed, weights, method); to add a method, add a function to METHODS and its name to PLAN.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import statistics
import sys
import time
from dataclasses import dataclass, replace

import torch
from torch import nn

import workloads
from harness import RESULTS, write_result

import torchquant as tq
from readme import markdown, read, where

DOCS = workloads.ROOT / "docs" / "methods.md"
BEGIN, END = "<!-- results -->\n", "<!-- /results -->\n"
SEEDS = (0, 1, 2)
ADAROUND_ITERATIONS = 300


@dataclass(frozen=True)
class Job:
    """A float model to quantize in one way."""

    workload: workloads.Workload
    model: nn.Module
    seed: int
    weights: str

    def qconfig(self, learned: bool = False) -> tq.QConfigMapping:
        """Static 8-bit activations; weights as asked. Embeddings keep 8 bits: no method here changes how they are rounded."""
        bits, granularity = WEIGHTS[self.weights]
        weight = tq.QuantSpec.weight(bits, axis=0 if granularity == "channel" else None)
        layers = tq.qconfigs.learned(weight_bits=bits) if learned else tq.QConfig(weight, tq.QuantSpec.activation(8))
        return tq.QConfigMapping(layers).set_module_type(nn.Embedding, tq.qconfigs.int8_weight_only())

    def calibrated(self) -> nn.Module:
        prepared = tq.prepare(self.model, self.workload.example, self.qconfig())
        tq.calibrate(prepared, self.workload.calibration)
        return prepared

    def trained(self, learned: bool = False) -> nn.Module:
        prepared = tq.prepare_qat(self.model, self.workload.example, self.qconfig(learned))
        tq.calibrate(prepared, self.workload.calibration)
        return self.workload.fine_tune(prepared, self.seed)

    def equalized(self) -> Job:
        return replace(self, model=tq.methods.cross_layer_equalization(self.model, self.workload.example))

    def smoothed(self) -> Job:
        return replace(self, model=tq.methods.smooth_quant(self.model, self.workload.example, self.workload.calibration))


def bias_corrected(job: Job) -> nn.Module:
    return tq.methods.bias_correction(job.calibrated(), job.workload.calibration)


def rounded(job: Job) -> nn.Module:
    return tq.methods.adaround(job.calibrated(), job.workload.calibration, iterations=ADAROUND_ITERATIONS, seed=job.seed)


# Name in the tables -> what makes a prepared model of a job.
METHODS = {
    "PTQ": Job.calibrated,
    "cross-layer equalization": lambda job: job.equalized().calibrated(),
    "SmoothQuant": lambda job: job.smoothed().calibrated(),
    "bias correction": bias_corrected,
    "equalization + bias correction": lambda job: bias_corrected(job.equalized()),
    "AdaRound": rounded,
    "QAT": Job.trained,
    "LSQ QAT": lambda job: job.trained(learned=True),
}
# Bits, and what shares a scale.
WEIGHTS = {
    f"int{bits} per {granularity}": (bits, granularity) for bits in (8, 4, 3) for granularity in ("channel", "tensor")
}
_CNN = ("PTQ", "cross-layer equalization", "bias correction", "equalization + bias correction", "AdaRound", "QAT", "LSQ QAT")
_PER_CHANNEL = ("int8 per channel", "int4 per channel", "int3 per channel")
# What runs on which workload: weights, methods. Training runs with weights per channel only.
PLAN = {
    "digits": ((*_PER_CHANNEL, "int4 per tensor"), _CNN),
    "mobile": ((*_PER_CHANNEL, "int4 per tensor", "int3 per tensor"), _CNN),
    "lm_outliers": (("int8 per channel",), ("PTQ", "SmoothQuant", "bias correction")),
    "lm": ((*_PER_CHANNEL, "int3 per tensor"), ("PTQ", "SmoothQuant", "bias correction", "AdaRound", "QAT", "LSQ QAT")),
}
_TRAINS = ("QAT", "LSQ QAT")


def planned(names, seeds):
    """(workload, seed, weights, method) of every row, method by method: a run that is stopped early has whole rows of the tables."""
    yield from ((name, seed, "fp32", "float") for name in names for seed in seeds)
    for method in METHODS:
        for name in names:
            weights, methods = PLAN[name]
            asked = [weight for weight in weights if method in methods and (method not in _TRAINS or weight in _PER_CHANNEL)]
            yield from ((name, seed, weight, method) for weight in asked for seed in seeds)


def key_of(row: dict) -> tuple:
    return row["workload"], row["seed"], row["weights"], row["method"]


def measure(workload: workloads.Workload, seed: int, weights: str, method: str) -> dict:
    model = workload.float_model(seed)
    started = time.perf_counter()
    if method != "float":
        job = Job(workload, model, seed, weights)
        torch.manual_seed(seed)
        model = tq.convert(METHODS[method](job), workload.example)
    seconds = time.perf_counter() - started
    return {"workload": workload.name, "seed": seed, "weights": weights, "method": method, "metric": workload.metric,
            "score": workload.evaluate(model), "seconds": round(seconds, 1)}  # fmt: skip


def setup() -> dict:
    """What must be the same for rows to stand in one table."""
    return {"adaround_iterations": ADAROUND_ITERATIONS, "python": sys.version.split()[0], "torch": torch.__version__,
            "threads": torch.get_num_threads()}  # fmt: skip


def finished_rows(fresh: bool) -> list[dict]:
    if fresh or not (RESULTS / "methods.json").exists():
        return []
    document = read("methods")
    if document["setup"] != setup():
        raise SystemExit(f"benchmarks/results/methods.json was measured with {document['setup']}, this would be {setup()}; pass --fresh")
    return document["rows"]


@contextlib.contextmanager
def only_writer():
    """Two runs would overwrite each other's rows."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    with open(workloads.ROOT / "build" / "methods.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(
                "another run of benchmarks/methods.py is writing benchmarks/results/methods.json; wait for it or stop it"
            ) from None
        yield


def run(names, seeds, fresh: bool) -> None:
    rows = {key_of(row): row for row in finished_rows(fresh)}
    missing = [key for key in planned(names, seeds) if key not in rows]
    built = {}
    for index, (name, *rest) in enumerate(missing):
        workload = built.setdefault(name, workloads.WORKLOADS[name]())
        row = measure(workload, *rest)
        rows[key_of(row)] = row
        done = f"{index + 1}/{len(missing)}  {name}  seed {row['seed']}  {row['weights']}  {row['method']}"
        print(f"{done}: {row['score']:.4f}", flush=True)
        order = {key: place for place, key in enumerate(planned(PLAN, SEEDS))}
        write_result("methods", setup(), sorted(rows.values(), key=lambda row: order.get(key_of(row), len(order))), quiet=True)


# The tables

TITLES = {
    "digits": "**digits**: accuracy on scikit-learn's digits, the residual CNN of `examples/digits.py` (450 test images: one is 0.22 "
    "points)",
    "mobile": "**mobile**: the same digits, a MobileNet of depthwise and pointwise layers",
    "lm": "**lm**: perplexity per character on the source of Python's standard library, a transformer with layer norms and a gated "
    "MLP",
    "lm_outliers": "**lm_outliers**: the same transformer, 3 of 64 channels of every normalised tensor 30 times larger (and the weights "
    "that read them smaller: the float result is the same), as large language models have them",
}


def mean_score(rows: list[dict], name: str, weights: str, method: str) -> float | None:
    scores = [row["score"] for row in rows if key_of(row)[::2] == (name, weights) and row["method"] == method]
    return statistics.mean(scores) if len(scores) == len(SEEDS) else None


def table(rows: list[dict], name: str) -> str:
    weights, methods = PLAN[name]
    baseline = mean_score(rows, name, "fp32", "float")
    if baseline is None:
        return ""
    percent = workloads.WORKLOADS[name].metric == "accuracy"

    def cell(weight, method):
        score = mean_score(rows, name, weight, method)
        plain = mean_score(rows, name, weight, "PTQ")
        if score is None:
            return ""
        text = f"{100 * score:.2f} %" if percent else f"{score:.3f}"
        better = score > plain if percent else score < plain
        return f"**{text}**" if method != "PTQ" and better else text

    heading = (f"float {100 * baseline:.2f} %" if percent else f"float {baseline:.3f}", *weights)
    return f"{TITLES[name]}:\n\n" + markdown(heading, [(method, *(cell(weight, method) for weight in weights)) for method in methods])


def loses(name: str, baseline: float, plain: float) -> bool:
    """Half a point of accuracy, or half a percent of perplexity."""
    return baseline - plain > 0.005 if workloads.WORKLOADS[name].metric == "accuracy" else plain > 1.005 * baseline


def recovered(rows: list[dict]) -> str:
    """What part of plain PTQ's loss each method takes back, where there is one."""
    lines = []
    for name, (weights, _) in PLAN.items():
        baseline = mean_score(rows, name, "fp32", "float")
        for weight in weights:
            plain = mean_score(rows, name, weight, "PTQ")
            if baseline is None or plain is None or not loses(name, baseline, plain):
                continue
            scores = [mean_score(rows, name, weight, method) for method in METHODS if method != "PTQ"]
            shares = ["" if score is None else f"{100 * (plain - score) / (plain - baseline):.0f} %" for score in scores]
            lines.append((f"{name}, {weight}", *shares))
    heading = ("", *(method for method in METHODS if method != "PTQ"))
    note = "Where plain PTQ loses more than half a point or half a percent, the part of that loss which is taken back:\n\n"
    return note + markdown(heading, lines)


def render() -> str:
    result = read("methods")
    tables = [text for name in PLAN if (text := table(result["rows"], name))]
    note = f"Means over three seeds, of converted models ({where(result)}); bold: better than plain PTQ; empty: not measured.\n\n"
    return note + "\n".join([*tables, recovered(result["rows"])])


def draw_docs(check: bool) -> int:
    text = DOCS.read_text()
    before, rest = text.split(BEGIN)
    updated = before + BEGIN + render() + END + rest.split(END)[1]
    if check and updated != text:
        print("docs/methods.md is not what benchmarks/results/ says; run: python benchmarks/methods.py --docs")
    if not check:
        DOCS.write_text(updated)
    return int(check and updated != text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=PLAN, default=list(PLAN), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS, help="default: 0 1 2")
    parser.add_argument("--fresh", action="store_true", help="forget the rows that are there")
    parser.add_argument("--docs", action="store_true", help="only draw the tables of docs/methods.md")
    parser.add_argument("--check", action="store_true", help="with --docs: only say whether they are up to date")
    options = parser.parse_args()
    if options.check and not options.docs:
        parser.error("--check goes with --docs")
    if options.docs:
        return draw_docs(options.check)
    with only_writer():
        run(options.workloads, options.seeds, options.fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
