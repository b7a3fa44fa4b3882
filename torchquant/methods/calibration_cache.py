"""save_calibration and load_calibration: the ranges of a calibrated model in a file, for the next model of the same kind."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from torchquant.calibrate import check_calibrated, finish_calibration, static_fake_quants
from torchquant.errors import nearest
from torchquant.fake_quantize import FakeQuantize
from torchquant.files import write_text
from torchquant.prepare import check_prepared

FORMAT = "torchquant calibration"
VERSION = 1


def save_calibration(prepared: nn.Module, path: str | os.PathLike) -> None:
    """Writes what calibration found: the observer state, scale and zero point of every activation fake-quant, as JSON.

    Beside them stands the model's fingerprint: the names and shapes of its parameters, and the QuantSpec of every fake-quant. Weights
    are not in the file: their ranges are taken from the weights themselves whenever a model is prepared or converted. The file is
    replaced only once the new one is whole, so a process that reads while another writes gets one of the two.

    Raises:
        TypeError: if `prepared` is no prepared model.
        ValueError: if it was not calibrated, or has no activation to calibrate.
    """
    check_prepared("save_calibration", prepared)
    fake_quants = static_fake_quants(prepared)
    if not fake_quants:
        raise ValueError("save_calibration: no activation of this model has a range to calibrate (dynamic or weight-only QConfig)")
    check_calibrated(prepared, "save_calibration")
    body = {"model": _fingerprint(prepared), "ranges": {name: _state(fake_quant) for name, fake_quant in fake_quants.items()}}
    document = {"format": FORMAT, "version": VERSION, "sha256": _digest(body), **body}
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def load_calibration(prepared: nn.Module, path: str | os.PathLike) -> nn.Module:
    """Gives a freshly prepared model the ranges of a file that `save_calibration` wrote, in place, and returns it ready to convert.

    `calibrate` afterwards goes on from the saved observer states.

    Raises:
        TypeError: if `prepared` is no prepared model.
        ValueError: if the file is damaged, of another version, or of another model (the error names the first difference and how
            many there are). The model is then as it was.
    """
    check_prepared("load_calibration", prepared)
    document = read_calibration(path)
    differences = list(_differences(document["model"], _fingerprint(prepared)))
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise ValueError(f"load_calibration: {os.fspath(path)!r} is the calibration of another model: {differences[0]}{more}")
    for name, fake_quant in static_fake_quants(prepared).items():
        fake_quant.load_state_dict(_tensors(document["ranges"][name]))
    finish_calibration(prepared)
    return prepared


def read_calibration(path: str | os.PathLike) -> dict:
    """What a file of `save_calibration` holds, checked to be whole: "model" (the fingerprint) and "ranges"."""
    name = os.fspath(path)
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"load_calibration: {name!r} is no calibration file, or is damaged: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"load_calibration: {name!r} is no calibration file of torchquant")
    if document.get("version") != VERSION:
        raise ValueError(f"load_calibration: {name!r} has version {document.get('version')!r}; this torchquant reads version {VERSION}")
    body = {key: document.get(key) for key in ("model", "ranges")}
    if document.get("sha256") != _digest(body):
        raise ValueError(f"load_calibration: {name!r} is damaged: its content does not have the SHA-256 that it was saved with")
    return document


def describe_calibration(document: dict) -> list[dict]:
    """A row per fake-quant of `read_calibration`'s document: its observer, range, scale and zero point."""
    rows = []
    for name, state in document["ranges"].items():
        spec = document["model"]["fake_quants"][name]
        rows.append(
            {
                "fake_quant": name,
                "observer": spec["observer"],
                "codes": [spec["quant_min"], spec["quant_max"]],
                "min_val": state["observer.min_val"]["values"],
                "max_val": state["observer.max_val"]["values"],
                "scale": state["scale"]["values"],
                "zero_point": state["zero_point"]["values"],
                "values_seen": sum(state["observer.histogram"]["values"]) if "observer.histogram" in state else None,
            }
        )
    return rows


def _fingerprint(prepared: nn.Module) -> dict:
    fake_quants = [module for module in prepared.modules() if isinstance(module, FakeQuantize)]
    own = {id(value) for fake_quant in fake_quants for value in fake_quant.parameters()}
    return {
        "parameters": {name: list(value.shape) for name, value in prepared.named_parameters() if id(value) not in own},
        "fake_quants": {
            name: module.spec.to_dict() for name, module in prepared.named_modules() if isinstance(module, FakeQuantize)
        },
    }


def _differences(saved: dict, own: dict) -> Iterable[str]:
    """Sentences, the most telling ones first."""
    for kind, what in (("parameters", "parameter"), ("fake_quants", "fake-quant")):
        for name in sorted(saved[kind].keys() - own[kind].keys()):
            yield f"it has the {what} {name!r}, this model has none of that name; nearest: {nearest(name, own[kind])}"
        for name in sorted(own[kind].keys() - saved[kind].keys()):
            yield f"this model has the {what} {name!r}, the file has none of that name; nearest: {nearest(name, saved[kind])}"
    for name in sorted(saved["parameters"].keys() & own["parameters"].keys()):
        if saved["parameters"][name] != own["parameters"][name]:
            yield f"{name!r} has shape {saved['parameters'][name]} in the file and {own['parameters'][name]} in this model"
    for name in sorted(saved["fake_quants"].keys() & own["fake_quants"].keys()):
        theirs, ours = saved["fake_quants"][name], own["fake_quants"][name]
        for field in sorted(theirs.keys() | ours.keys()):
            if theirs.get(field) != ours.get(field):
                yield f"{name!r} has {field}={theirs.get(field)!r} in the file and {field}={ours.get(field)!r} in this model's QConfig"


def _state(fake_quant: FakeQuantize) -> dict:
    return {
        name: {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape), "values": value.flatten().tolist()}
        for name, value in fake_quant.state_dict().items()
    }


def _tensors(state: dict) -> dict:
    return {
        name: torch.tensor(entry["values"], dtype=getattr(torch, entry["dtype"])).reshape(entry["shape"]) for name, entry in state.items()
    }


def _digest(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
