"""What the commands share: how they print, and how errors become sentences."""

from __future__ import annotations

import json

import click
import torch
from rich.console import Console
from rich.table import Table

from torchquant.receipt import Receipt

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")


class errors_as_sentences:
    """Turns the library's errors into click's: one line on stderr and exit code 1, no traceback."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, (RuntimeError, ValueError)):
            raise click.ClickException(str(error).strip()) from error


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def last_line(error: Exception) -> str:
    """What went wrong, without the TorchScript code that comes before it."""
    return str(error).strip().splitlines()[-1].removeprefix("RuntimeError: ")


def print_json(document: dict) -> None:
    click.echo(json.dumps(document, indent=2))


def print_table(title: str, facts: dict) -> None:
    table = Table(title=title, show_header=False)
    for name, value in facts.items():
        text = f"{value:.4f}" if isinstance(value, float) else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        table.add_row(name, text)
    Console().print(table)


def print_receipt(receipt: Receipt, report: dict, as_json: bool) -> None:
    if as_json:
        print_json({**report, "summary": receipt.summary(), "rows": receipt.rows})
        return
    print_table("TorchQuant file", report)
    Console().print(receipt.table())


def check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise click.BadParameter(first_line(error), param_hint="--device") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter(f"'{name}' needs a GPU that torch can use, and there is none here", param_hint="--device")
