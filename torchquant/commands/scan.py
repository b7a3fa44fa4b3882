"""`torchquant scan`: which layers quantization hurts, and the best precision for each within a budget."""

from __future__ import annotations

import math
import os
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from torchquant import _C, qconfigs
from torchquant.analysis.sensitivity import MODES, sensitivity_scan
from torchquant.analysis.sensitivity_report import json_number
from torchquant.commands.common import INPUTS_FORM, as_json, call_target, errors_as_sentences, load_batches, load_script, load_target, print_json
from torchquant.progress import ProgressBar
from torchquant.qconfig import QConfigMapping

_PRESETS = ("int8_static", "int4_weight_static", "int8_dynamic", "fp8_dynamic", "int8_weight_only", "int4_weight_only")
_BUDGETS = ("max_latency_ms", "max_size_mb", "max_accuracy_drop")
_TARGET = "MODULE:NAME"


@click.command(short_help="Which layers quantization hurts, and a precision for each.")
@click.argument("prepared", required=False, type=click.Path(exists=True, dir_okay=False))
@click.argument("inputs", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("--model", metavar=_TARGET, help="A torch.nn.Module, or a function that returns one.")
@click.option("--calibration", metavar=_TARGET, help="Batches, or a function that returns them: tensors, tuples of arguments or dicts.")
@click.option("--evaluate", metavar=_TARGET, help="A function of a model that returns the metric. Without one, SQNR ranks.")
@click.option("--example-inputs", metavar=_TARGET, help="What latency is measured on.  [default: the first calibration batch]")
@click.option(
    "--qconfig", "names", multiple=True, metavar="NAME|FILE",
    help=f"{', '.join(_PRESETS)}, or a .yaml or .json file of a QConfigMapping; repeat to offer several.  [default: int8_static]",
)  # fmt: skip
@click.option("--mode", type=click.Choice(MODES), default="both", show_default=True, help="What is quantized.")
@click.option("--layer", "layers", multiple=True, metavar="REGEX", help="Scan only layers whose path, or a parent's, matches.")
@click.option("--lower-is-better", is_flag=True, help="The metric is a loss, an error or a perplexity.")
@click.option("--no-latency", is_flag=True, help="Do not time the layers.")
@click.option("--max-latency-ms", type=float, help="Propose the most accurate configuration within this latency.")
@click.option("--max-size-mb", type=float, help="... within this size of weights and buffers, in 10^6 bytes.")
@click.option("--max-accuracy-drop", type=float, help="Propose the fastest, or without latency the smallest, that loses no more.")
@click.option("--no-measure", is_flag=True, help="Do not convert the proposal to time and evaluate it beside its prediction.")
@click.option(
    "--output", type=click.Path(file_okay=False),
    help="Folder for report.json, scan.png and qconfig.yaml; a scan that was killed goes on from it.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; torch's choice if not given.")
@as_json
def scan(
    prepared: str | None, inputs: str | None, model: str | None, calibration: str | None, evaluate: str | None, example_inputs: str | None,
    names: tuple[str, ...], mode: str, layers: tuple[str, ...], lower_is_better: bool, no_latency: bool,
    no_measure: bool, output: str | None, threads: int | None, as_json: bool, **budgets: float | None,
) -> None:  # fmt: skip
    """Rank layers by what quantizing them costs, and propose a precision for each.

    \b
    In Python: a model, calibration batches and a metric, named as module:name and looked up from this folder first.
      torchquant scan --model net:build --calibration net:batches --evaluate net:accuracy --output scan
      torchquant scan ... --qconfig int8_static --qconfig int4_weight_static --max-size-mb 3.5
      torchrun --nproc-per-node 4 -m torchquant scan ...          the processes share the evaluations
    where net.py holds
      def build(): return MyNet()                    # or a module
      def batches(): return [images[:64], ...]       # or a list
      def accuracy(model): return (model(x).argmax(1) == y).float().mean().item()

    \b
    Without Python code: a prepared TorchScript file and inputs from torch.save; ranks by SQNR of the output. (INPUTS is a tensor, a
    tuple of tensors, which are the arguments of one call, or a list of such batches.) Budgets, metric and latency need --model.
      torchquant scan prepared.pt inputs.pt
    """
    if threads:
        torch.set_num_threads(threads)
    if (prepared is None) == (model is None):
        raise click.UsageError("give either --model, or the files PREPARED and INPUTS; see torchquant scan --help")
    if prepared is not None:
        _check_options_of_files()
        _scan_file(prepared, inputs, as_json)
        return
    given = {name: budgets[name] for name in _BUDGETS if budgets[name] is not None}
    _check_budgets(given, latency=not no_latency, metric=evaluate is not None)
    batches = None if calibration is None else call_target(calibration, "--calibration")
    example, batches = _example(example_inputs, batches)
    folder = None if output is None else _made(output)
    if batches is not None and not no_measure and not hasattr(batches, "__len__"):
        batches = list(batches)  # the proposal is calibrated too
    net, metric = _model(model), load_target(evaluate, "--evaluate") if evaluate else None
    with errors_as_sentences():
        report = sensitivity_scan(
            net, example, batches, metric, _candidates(names), mode=mode, layers=layers or None, higher_is_better=not lower_is_better,
            measure_latency=not no_latency, resume=folder and folder / "scan.jsonl",
        )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":  # the other processes have the same report

        def measure(mapping: QConfigMapping) -> dict | None:
            if no_measure or no_latency:
                return None
            try:
                return report.measure(mapping, net, example, batches, evaluate=metric)
            except Exception as error:  # whatever the metric does with a converted model, it must not cost the scan
                click.echo(f"the proposal was not measured: {type(error).__name__}: {error}", err=True)
                return None

        _finish(report, given, folder, as_json, measure)


def _check_budgets(budgets: dict[str, float], *, latency: bool, metric: bool) -> None:
    """Before the scan, which may take hours, what needs no scan to be seen."""
    for name, value in budgets.items():
        if not (math.isfinite(value) and value >= 0):
            raise click.UsageError(f"--{name.replace('_', '-')} must be a finite number of at least 0; got {value}")
    if "max_latency_ms" in budgets and not latency:
        raise click.UsageError("--max-latency-ms needs the layers' latency; leave out --no-latency")
    if "max_accuracy_drop" in budgets and not metric:
        raise click.UsageError("--max-accuracy-drop needs a metric; give --evaluate")


def _finish(report, budgets: dict[str, float], folder: Path | None, as_json: bool, measure) -> None:
    if folder is not None:
        report.save(folder / "report.json")
        report.plot(folder / "scan.png")
    mapping = failure = None
    try:
        mapping = report.propose(**budgets) if budgets else None
    except (RuntimeError, ValueError) as error:
        failure = error  # raised once the report is printed: a budget out of reach must not cost the scan
    with errors_as_sentences():
        proposal = None if mapping is None else _proposal(report, mapping, folder, measure)
    if as_json:
        print_json({**report.to_dict(), "proposal": proposal})
    else:
        Console().print(report)
        if proposal is not None:
            Console().print(_proposal_table(report, mapping, proposal))
    if failure is not None:
        raise click.ClickException(str(failure)) from failure


def _proposal(report, mapping: QConfigMapping, folder: Path | None, measure) -> dict:
    proposal = {**report.predict(mapping), "qconfig": mapping.to_dict()}
    if folder is not None:
        mapping.save(folder / "qconfig.yaml")
        proposal["file"] = str(folder / "qconfig.yaml")
    return {**proposal, "measured": measure(mapping)}


def _proposal_table(report, mapping: QConfigMapping, proposal: dict) -> Table:
    lines = [f"predicted: {_figures(proposal)}"]
    if proposal["measured"] is not None:
        lines.append(f"measured: {_figures(proposal['measured'])}; the float model then: {proposal['measured']['float_latency_ms']:.4g} ms")
    if "file" in proposal:
        lines.append(f"written to {proposal['file']}")
    table = Table(title="Proposal", caption="\n".join(lines))
    table.add_column("layer", overflow="fold")
    table.add_column("precision")
    for layer, candidate in report.choices(mapping).items():
        table.add_row(layer, candidate)
    return table


def _figures(values: dict) -> str:
    texts = {"metric": "{:.5g}", "drop": "{:.4g}", "latency_ms": "{:.4g} ms", "size_mb": "{:.4g} MB"}
    known = {name: text.format(values[name]) for name, text in texts.items() if values.get(name) is not None}
    return ", ".join(f"{name.split('_')[0]} {text}" for name, text in known.items())


def _model(target: str) -> torch.nn.Module:
    model = call_target(target, "--model")
    if not isinstance(model, torch.nn.Module):
        raise click.BadParameter(f"'{target}' must give a torch.nn.Module, it gives a {type(model).__name__}", param_hint="--model")
    return model


def _example(target: str | None, batches):
    """(example inputs, the calibration batches, as a list if the first was taken from an iterator)."""
    if target is not None:
        return call_target(target, "--example-inputs"), batches
    if batches is None:
        raise click.UsageError("give --calibration, or --example-inputs for a QConfig that needs no calibration")
    if not hasattr(batches, "__len__"):
        batches = list(batches)
    first = next(iter(batches), None)
    if first is None:
        raise click.BadParameter("it holds no batch", param_hint="--calibration")
    return first, batches


def _candidates(names: tuple[str, ...]) -> dict:
    candidates = {}
    for name in names or _PRESETS[:1]:
        if name in _PRESETS:
            candidates[name] = getattr(qconfigs, name)()
        elif os.path.isfile(name):
            candidates[Path(name).stem] = QConfigMapping.load(name)
        else:
            raise ValueError(f"--qconfig must be one of {', '.join(_PRESETS)} or a file; got '{name}'")
    return candidates


def _made(folder: str) -> Path:
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.BadParameter(f"cannot make the folder '{folder}': {error.strerror}", param_hint="--output") from error
    return path


# ---- prepared files


def _check_options_of_files() -> None:
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
        if given and parameter.name not in ("prepared", "inputs", "threads", "as_json"):
            raise click.UsageError(
                f"{parameter.opts[0]} needs --model: a prepared file is ranked as it is, by the SQNR of its output; see torchquant scan --help"
            )


def _scan_file(prepared: str, inputs: str | None, as_json: bool) -> None:
    if inputs is None:
        raise click.UsageError(f"a prepared file needs INPUTS too: {INPUTS_FORM}")
    batches = [list(batch) for batch in load_batches(inputs, "INPUTS")]
    script = load_script(prepared)
    with errors_as_sentences(), ProgressBar("scanning layers") as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.advance()

        result = _C.scan_sensitivity(script._c, batches, advance)
    if as_json:
        print_json({
            "quantized_sqnr_db": json_number(result["quantized_sqnr_db"]),
            "ranking": [{key: json_number(value) for key, value in row.items()} for row in result["ranking"]],
        })  # fmt: skip
        return
    table = Table(title="Sensitivity of layers", caption=f"all layers quantized: {result['quantized_sqnr_db']:.2f} dB")
    for heading in ("layer", "kind", "SQNR alone", "SQNR of all but this"):
        table.add_column(heading, overflow="fold")
    for row in result["ranking"]:
        table.add_row(row["layer"], row["kind"], f"{row['alone_sqnr_db']:.2f} dB", f"{row['but_one_sqnr_db']:.2f} dB")
    Console().print(table)
