"""`torchquant convert`: a prepared TorchScript file in, the integer model out."""

from __future__ import annotations

import os

import click

from torchquant.commands.common import as_json, errors_as_sentences, load_script, print_receipt
from torchquant.convert import ON_FALLBACK, convert_script


@click.command(short_help="A prepared TorchScript file into the integer model.")
@click.argument("prepared", type=click.Path(exists=True, dir_okay=False))
@click.argument("output", type=click.Path(dir_okay=False))
@click.option(
    "--on-fallback",
    type=click.Choice(ON_FALLBACK),
    default="error",
    show_default=True,
    help="What to do about a layer that was asked to be quantized and cannot be: refuse, or leave it float.",
)
@as_json
def convert(prepared: str, output: str, on_fallback: str, as_json: bool) -> None:
    """Convert the prepared TorchScript file PREPARED into the integer model OUTPUT and print the receipt.

    \b
    A prepared file comes from Python:
      prepared = torchquant.prepare(model, example_inputs, qconfig)
      torchquant.calibrate(prepared, batches)
      torchquant.trace(prepared, example_inputs).save("prepared.pt")
    or from C++ (cpp_examples/qat). OUTPUT is written only if everything succeeds.
    """
    with errors_as_sentences():
        script = load_script(prepared)
        model = convert_script(script, on_fallback)
        prepared_bytes = os.path.getsize(prepared)  # OUTPUT may be the same file
        model.save(output)
    report = {"output": output, "bytes": os.path.getsize(output), "prepared_bytes": prepared_bytes}
    print_receipt(model.receipt, report, as_json)
