"""write: puts what is known of a quantized model on one HTML page. Called by users and by `torchquant report`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path

import torch

from torchquant import _build_info
from torchquant.files import write_text
from torchquant.receipt import Receipt
from torchquant.report import sections
from torchquant.report.charts import with_own_ids
from torchquant.report.sections import Section

_TEMPLATE = Path(__file__).resolve().parent / "template.html"

# What each argument of `write` becomes, in the order of the page.
_SECTIONS: dict[str, Callable[[dict], Section]] = {
    "validation": sections.validation,
    "quantized": sections.receipt,
    "sensitivity": sections.sensitivity,
    "comparison": sections.comparison,
    "calibration": sections.calibration,
}


def write(
    path: str | os.PathLike,
    *,
    title: str = "Quantization report",
    quantized=None,
    validation=None,
    sensitivity=None,
    comparison=None,
    calibration=None,
    all_histograms: bool = False,
) -> None:
    """Writes one self-contained HTML file with a section for each thing that is given.

    Args:
        path: the file; one that was there before is replaced only once the new one is whole.
        title: its heading.
        quantized: the QuantizedModel, or its Receipt.
        validation, sensitivity, comparison: what `torchquant.validate`, `sensitivity_scan` and `compare` returned, or its `to_dict()`.
        all_histograms: draw the values of every compared layer, some 15 kB each, not of the 24 with the lowest SQNR alone.
        calibration: what `methods.clipping_report` or `methods.calibration_curve` returned, its `to_dict()`, or a list of these.

    Raises:
        ValueError: if nothing is given, or something is not what its section shows.
        RuntimeError: if the file cannot be written.
    """
    if quantized is not None:
        receipt = getattr(quantized, "receipt", quantized)
        if not isinstance(receipt, Receipt):
            raise TypeError(f"report: quantized must be a QuantizedModel or a Receipt, got {type(quantized).__name__}")
        quantized = {"rows": receipt.rows}
    given = {"validation": validation, "quantized": quantized, "sensitivity": sensitivity, "comparison": comparison, "calibration": calibration}
    if calibration is not None:
        parts = calibration if isinstance(calibration, (list, tuple)) else [calibration]
        given["calibration"] = {"parts": [_document("calibration", part) for part in parts]}
    documents = {name: _document(name, value) for name, value in given.items() if value is not None}
    if "comparison" in documents:
        documents["comparison"] = {**documents["comparison"], "all_histograms": all_histograms}
    if not documents:
        raise ValueError(f"report: give at least one of {', '.join(given)}")
    page = [_section(name, documents[name]) for name in _SECTIONS if name in documents]
    text = _render(title, page)
    try:
        write_text(path, text)
    except OSError as error:
        raise RuntimeError(f"report: cannot write '{os.fspath(path)}': {error.strerror}") from error


def _document(name: str, value) -> dict:
    document = value.to_dict() if hasattr(value, "to_dict") else value
    if not isinstance(document, Mapping):
        raise TypeError(f"report: {name} must be a result of TorchQuant or its to_dict(), got {type(value).__name__}")
    return document


def _section(name: str, document: dict) -> Section:
    try:
        return _SECTIONS[name](document)
    except (KeyError, TypeError, AttributeError) as error:
        missing = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"report: {name} is not what its section shows, the to_dict() of TorchQuant's own result: {missing}") from error


def _render(title: str, page: list[Section]) -> str:
    import jinja2  # here, because importing torchquant should not take the time of what only reports need

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    for number, picture in enumerate((picture for section in page for picture in (*section.figures, *section.more_figures)), start=1):
        picture.svg = with_own_ids(picture.svg, number)
    made = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC · torch {torch.__version__}"
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=title, made=made, sections=page, version=_build_info.VERSION
    )
