"""`torchquant compare`: layer by layer, where a prepared or converted file leaves the float one."""

from __future__ import annotations

import zipfile

import click
import torch
from rich.console import Console

from torchquant.analysis.compare import MIN_SQNR_DB
from torchquant.analysis.compare import compare as compare_models
from torchquant.commands.common import as_json, errors_as_sentences, first_line, print_json
from torchquant.quantized_model import load

_FILE = click.Path(exists=True, dir_okay=False)


@click.command(short_help="Layer by layer, where a quantized model leaves the float one.")
@click.argument("float_file", metavar="FLOAT", type=_FILE)
@click.argument("quantized_file", metavar="QUANTIZED", type=_FILE)
@click.option("--inputs", required=True, type=_FILE, help="From torch.save: a tensor, a tuple of tensors, or a list of such batches.")
@click.option("--prepared", "prepared_file", type=_FILE, help="Beside a converted QUANTIZED, the prepared file that it was made of.")
@click.option("--min-sqnr", type=float, default=MIN_SQNR_DB, show_default=True, help="A layer below this many dB counts as wrong.")
@click.option("--plot", nargs=2, metavar="LAYER IMAGE", help="Also draw the histograms of a layer into a .png or .svg file.")
@as_json
def compare(float_file, quantized_file, inputs, prepared_file, min_sqnr, plot, as_json) -> None:
    """Say where QUANTIZED leaves the float model FLOAT, layer by layer, and which layer goes wrong first.

    \b
    FLOAT      TorchScript: torch.jit.trace(model, example).save("float.pt")
    QUANTIZED  prepared:    torchquant.trace(prepared, example).save("prepared.pt")
               converted:   torchquant convert prepared.pt model.pt

    \b
    torchquant compare float.pt prepared.pt --inputs batches.pt
    torchquant compare float.pt model.pt --prepared prepared.pt --inputs batches.pt --json

    A script has rows for the layers with weights and for the tensors that integer layers read. A converted file alone has rows for
    the layers that end in floats: give --prepared for the others. In Python, torchquant.compare knows every module.
    """
    batches = _load_batches(inputs)
    with errors_as_sentences():
        quantized = load(quantized_file) if _is_converted(quantized_file) else _load_script(quantized_file)
        prepared = _load_script(prepared_file) if prepared_file else None
        comparison = compare_models(_load_script(float_file), quantized, batches, prepared=prepared, min_sqnr_db=min_sqnr)
        if plot:
            comparison.plot(*plot)
    if as_json:
        print_json({"float": float_file, "quantized": quantized_file, "batches": len(batches), **comparison.to_dict()})
    else:
        Console().print(comparison)


def _is_converted(path: str) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("extra/torchquant.json") for name in archive.namelist())


def _load_script(path: str) -> torch.jit.ScriptModule:
    try:
        return torch.jit.load(path, map_location="cpu").eval()
    except RuntimeError as error:
        raise click.ClickException(f"'{path}' is not a TorchScript file that can be read: {first_line(error)}") from error


def _load_batches(path: str) -> list:
    try:
        inputs = torch.load(path, weights_only=True)
    except Exception as error:  # torch.load raises whatever its parsers meet
        raise click.BadParameter(f"'{path}' is not a file of tensors that torch.save wrote", param_hint="--inputs") from error
    return inputs if isinstance(inputs, list) else [inputs]
