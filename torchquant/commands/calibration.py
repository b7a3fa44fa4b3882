"""`torchquant calibration show`: what a calibration file holds."""

from __future__ import annotations

import os

import click
from rich.console import Console
from rich.table import Table

from torchquant.commands.common import as_json, errors_as_sentences, print_json, print_table
from torchquant.methods.calibration_cache import describe_calibration, read_calibration


@click.group(short_help="What a saved calibration holds.")
def calibration() -> None:
    """Look into files that torchquant.methods.save_calibration wrote.

    \b
    Python   torchquant.methods.save_calibration(prepared, "ranges.json")
             torchquant.methods.load_calibration(prepared, "ranges.json")    instead of calibrating again
    shell    torchquant calibration show ranges.json
    """


@calibration.command(short_help="Print every range, scale and zero point.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@as_json
def show(file: str, as_json: bool) -> None:
    """Print the range, scale and zero point of every tensor in the calibration FILE, after checking that it is whole."""
    with errors_as_sentences():
        document = read_calibration(file)
    rows, parameters = describe_calibration(document), document["model"]["parameters"]
    facts = {"file": file, "bytes": os.path.getsize(file), "version": document["version"], "sha256": document["sha256"]}
    if as_json:
        print_json({**facts, "parameters": parameters, "rows": rows})
        return
    print_table("Calibration file", {**facts, "parameters": len(parameters), "fake-quants": len(rows)})
    Console().print(_table(rows))


def _table(rows: list[dict]) -> Table:
    table = Table(title="Ranges")
    for heading in ("fake-quant", "observer", "codes", "min", "max", "scale", "zero point", "values seen"):
        table.add_column(heading, overflow="fold", justify="left" if heading in ("fake-quant", "observer") else "right")
    for row in rows:
        ends = _ends(row["min_val"], min), _ends(row["max_val"], max)
        table.add_row(
            row["fake_quant"], row["observer"], "{}..{}".format(*row["codes"]), *ends, _ends(row["scale"], max),
            _ends(row["zero_point"], max), "" if row["values_seen"] is None else str(row["values_seen"]),
        )  # fmt: skip
    return table


def _ends(values: list[float], outermost) -> str:
    return f"{outermost(values):.6g}" + (f" ({len(values)} channels)" if len(values) > 1 else "")
