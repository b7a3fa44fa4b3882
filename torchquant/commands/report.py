"""`torchquant report`: one HTML page from a saved model and the JSON that the other commands print."""

from __future__ import annotations

import json
import os

import click

from torchquant import _C
from torchquant import report as page
from torchquant.commands.common import as_json, errors_as_sentences, print_json
from torchquant.progress import ProgressBar
from torchquant.receipt import Receipt

_json_file = click.Path(exists=True, dir_okay=False)


@click.command(short_help="One self-contained HTML page of a run.")
@click.argument("file", metavar="[MODEL]", type=click.Path(), required=False)
@click.option("--output", type=click.Path(dir_okay=False), required=True, help="The HTML file to write.")
@click.option("--title", help="Heading of the page.  [default: the name of MODEL]")
@click.option("--validation", type=_json_file, help="From `torchquant validate --json`.")
@click.option("--sensitivity", type=_json_file, help="From `torchquant scan --model ... --json`; not from the scan of a prepared file.")
@click.option("--comparison", type=_json_file, help="From `torchquant compare --json`.")
@click.option("--calibration", type=_json_file, multiple=True, help="From `torchquant calibration show --json`; may be repeated.")
@click.option("--all-histograms", is_flag=True, help="Draw every layer of the comparison, not the 24 with the lowest SQNR alone.")
@as_json
def report(
    file: str | None, output: str, title: str | None, validation: str | None, sensitivity: str | None, comparison: str | None,
    calibration: tuple[str, ...], all_histograms: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write one self-contained HTML page about the saved model MODEL: which kernel runs each layer, and what else you give.

    The page needs no network and reads well on a phone. It holds a section for each thing that is given.

    \b
    torchquant report model.pt --output report.html
    torchquant validate float.pt model.pt test.pt --json > v.json
    torchquant report model.pt --output report.html --validation v.json
    """
    documents = {
        "validation": _read("--validation", validation),
        "sensitivity": _read("--sensitivity", sensitivity),
        "comparison": _read("--comparison", comparison),
        "calibration": [_read("--calibration", name) for name in calibration] or None,
    }
    if documents["sensitivity"] and "quantized_sqnr_db" in documents["sensitivity"]:
        raise click.BadParameter(
            f"'{sensitivity}' is from the scan of a prepared file, which has no metric, latency or size; take that of "
            "`torchquant scan --model ... --json`", param_hint="--sensitivity",
        )  # fmt: skip
    with errors_as_sentences(), ProgressBar("writing the report"):
        receipt = Receipt.from_json(_C.read_manifest(file)["receipt_json"]) if file else None
        page.write(output, title=title or (os.path.basename(file) if file else "Quantization report"), quantized=receipt, all_histograms=all_histograms, **documents)
    facts = {"output": output, "bytes": os.path.getsize(output), "sections": [name for name, value in documents.items() if value]}
    if receipt is not None:
        facts["sections"].insert(0, "receipt")
    if as_json:
        print_json(facts)
    else:
        click.echo(f"Wrote {output} ({facts['bytes'] / 1000:.0f} kB): {', '.join(facts['sections'])}")


def _read(option: str, path: str | None) -> dict | None:
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except ValueError as error:
        raise click.BadParameter(f"'{path}' is not JSON: {error}", param_hint=option) from error
    if not isinstance(document, dict):
        raise click.BadParameter(f"'{path}' holds a {type(document).__name__}, not what a --json option printed", param_hint=option)
    return document
