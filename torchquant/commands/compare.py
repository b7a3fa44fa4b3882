"""`torchquant compare`: layer by layer, where a prepared or converted file leaves the float one."""

from __future__ import annotations

import zipfile

import click
from rich.console import Console

from torchquant.analysis.compare import MIN_SQNR_DB
from torchquant.analysis.compare import compare as compare_models
from torchquant.commands.common import INPUTS_FORM, as_json, errors_as_sentences, load_batches, load_script, print_json
from torchquant.quantized_model import load

_FILE = click.Path(exists=True, dir_okay=False)


@click.command(short_help="Layer by layer, where a quantized model leaves the float one.")
@click.argument("float_file", metavar="FLOAT", type=_FILE)
@click.argument("quantized_file", metavar="QUANTIZED", type=_FILE)
@click.option("--inputs", required=True, type=_FILE, help=f"A file: {INPUTS_FORM}.")
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
    batches = load_batches(inputs, "--inputs")
    with errors_as_sentences():
        quantized = load(quantized_file) if _is_converted(quantized_file) else load_script(quantized_file).eval()
        prepared = load_script(prepared_file).eval() if prepared_file else None
        comparison = compare_models(load_script(float_file).eval(), quantized, batches, prepared=prepared, min_sqnr_db=min_sqnr)
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
