"""`torchquant inspect`: verifies a saved model and prints its receipt."""

from __future__ import annotations

import os

import click

from torchquant import _C
from torchquant.commands.common import as_json, errors_as_sentences, print_receipt
from torchquant.receipt import Receipt


@click.command()
@click.argument("file", type=click.Path())
@as_json
def inspect(file: str, as_json: bool) -> None:
    """Verify the saved model FILE and print which kernel runs each layer, or why it stayed float.

    Reads a file that QuantizedModel.save or torchquant::save wrote; exits with 1 if it is damaged or foreign. Nothing of the
    model is run.
    """
    with errors_as_sentences():
        manifest = _C.read_manifest(file)
    receipt = Receipt.from_json(manifest.pop("receipt_json"))
    print_receipt(receipt, {"file": file, "bytes": os.path.getsize(file), **manifest}, as_json)
