"""`torchquant validate`: float against quantized on the user's data, with limits that fail a build."""

from __future__ import annotations

import math
import re
import sys

import click
import torch
from rich.console import Console

from torchquant.analysis.validate import validate as compare_models
from torchquant.commands.common import (
    as_json,
    check_device,
    errors_as_sentences,
    load_float_model,
    load_labelled_data,
    load_target,
    print_json,
)
from torchquant.quantized_model import load

_LIMITS = {
    "max_accuracy_drop": "Largest drop of the metric, in its own unit: 0.005 is half a point of accuracy.",
    "max_latency_ratio": "Largest P50 latency, quantized / float: 0.5 asks for twice the speed.",
    "max_size_ratio": "Largest file size, quantized / float.",
    "max_memory_ratio": "Largest peak memory of a fresh process, quantized / float.",
    "max_cold_start_ratio": "Largest time to load and run once in a fresh process, quantized / float.",
}


def _limit_options(command):
    command = click.option("--max-fallbacks", type=click.IntRange(min=0), help="Most layers that may have stayed float though asked.")(command)
    for name, text in reversed(_LIMITS.items()):
        command = click.option(_option(name), type=float, callback=_check_limit, help=text)(command)
    return command


def _check_limit(context, parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):  # no figure would ever exceed a NaN
        raise click.BadParameter(f"a limit must be a finite number, got {value}")
    return value


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


@click.command(short_help="Float against quantized on your data: accuracy, speed, size, limits.")
@click.argument("float_model", metavar="FLOAT")
@click.argument("file", metavar="QUANTIZED", type=click.Path())
@click.argument("data", metavar="DATA")
@click.option("--metric", metavar="MODULE:FUNCTION", help="metric(outputs, labels): a score per sample, or one number. [default: top-1 accuracy]")
@click.option("--lower-is-better", is_flag=True, help="The metric is a loss, an error or a perplexity.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="For DATA of one (inputs, labels).")
@click.option("--runs", type=click.IntRange(min=1), default=100, show_default=True, help="Timed calls for each model.")
@click.option("--processes", type=click.IntRange(min=0), default=3, show_default=True, help="Fresh processes for cold start and memory; 0 for none.")
@click.option("--confidence", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.95, show_default=True,
              help="Of the interval of the drop.")
@click.option("--device", default="cpu", show_default=True, help="Where both models run: cpu, cuda, cuda:1.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; torch's choice if not given.")
@_limit_options
@as_json
def validate(
    float_model: str, file: str, data: str, metric: str | None, lower_is_better: bool, batch_size: int, runs: int, processes: int,
    confidence: float, device: str, threads: int | None, as_json: bool, **limits,
) -> None:  # fmt: skip
    """Compare the quantized model file QUANTIZED with the float model FLOAT on labelled DATA.

    Prints accuracy with a confidence interval of its drop, latency P50/P95/P99, throughput, cold start, peak memory, file size and
    the layers that fell back to float. Exits with 1, after one sentence for each, if a --max-... limit is exceeded.

    \b
    FLOAT  a TorchScript file, or package.module:function for a function that returns the torch.nn.Module
    DATA   a file that torch.save((inputs, labels), ...) wrote, or package.module:function for a function
           that returns that pair or an iterable of (inputs, labels) batches, such as a DataLoader;
           inputs is a tensor or a tuple of tensors, the arguments of one call

    \b
    torchquant validate float.pt model.pt test.pt --max-accuracy-drop 0.005 --max-latency-ratio 0.6
    torchquant validate mynet:build model.pt mynet:test_loader --metric mynet:iou --json > validation.json
    """
    check_device(device)
    if threads:
        torch.set_num_threads(threads)
    score = load_target(metric, "--metric") if metric else None
    given = {name: limit for name, limit in limits.items() if limit is not None}
    labelled = load_labelled_data(data, "DATA")
    reference = load_float_model(float_model, device, "FLOAT")
    with errors_as_sentences():
        report = compare_models(
            reference, load(file, device), labelled, score, higher_is_better=not lower_is_better, batch_size=batch_size,
            runs=runs, processes=processes, confidence=confidence,
        )  # fmt: skip
    failures = [re.sub("max_[a-z_]+", lambda name: _option(name[0]), failure) for failure in report.failures(**given)]
    if as_json:
        print_json({**report.to_dict(), "limits": given, "failures": failures})
    else:
        Console().print(report)
    for failure in failures:
        click.echo(f"Failed: {failure}", err=True)
    if failures:
        sys.exit(1)
