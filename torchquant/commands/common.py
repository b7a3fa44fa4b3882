"""What the commands share: how they print, and how errors become sentences."""

from __future__ import annotations

import json
import os
import pkgutil
import sys

import click
import torch
from rich.console import Console
from rich.table import Table

from torchquant import _C
from torchquant.errors import first_line
from torchquant.receipt import Receipt

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")


class errors_as_sentences:
    """Turns the library's errors into click's: one line on stderr and exit code 1, no traceback."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, (RuntimeError, TypeError, ValueError)):
            raise click.ClickException(str(error).strip()) from error


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
    try:
        _C.check_device(device)
    except RuntimeError as error:
        raise click.BadParameter(first_line(error), param_hint="--device") from error


def load_target(text: str, what: str):
    """The object that "package.module:name" stands for, looked up from the current folder first; a function that makes something is
    not called."""
    if ":" not in text:
        raise click.BadParameter(f"'{text}' is neither a file nor a target such as package.module:function", param_hint=what)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return pkgutil.resolve_name(text)
    except Exception as error:  # importing runs the user's module, which may raise anything
        raise click.BadParameter(f"'{text}' cannot be imported: {type(error).__name__}: {error}", param_hint=what) from error


def call_target(text: str, what: str):
    """What the function "package.module:function" returns, or the object itself where the target is no function."""
    target = load_target(text, what)
    if isinstance(target, torch.nn.Module) or not callable(target):
        return target
    try:
        return target()
    except Exception as error:  # the user's code
        raise click.BadParameter(f"'{text}' failed when called without arguments: {type(error).__name__}: {error}", param_hint=what) from error


def load_script(path: str, device: str = "cpu", what: str | None = None) -> torch.jit.ScriptModule:
    """`what`: the option or argument that names the file, for the error; None where there is only one."""
    try:
        return torch.jit.load(path, map_location=device)
    except RuntimeError as error:
        text = f"'{path}' is not a TorchScript file that can be read: {first_line(error)}"
        raise (click.BadParameter(text, param_hint=what) if what else click.ClickException(text)) from error


def load_tensors(path: str, what: str):
    """Whatever torch.save wrote of tensors and containers of them."""
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:  # torch.load raises whatever its parsers meet
        raise click.BadParameter(f"'{path}' is not a file of tensors that torch.save wrote", param_hint=what) from error


INPUTS_FORM = "a tensor, a tuple of tensors (the arguments of one call), or a list of such batches, from torch.save"


def load_batches(path: str, what: str) -> list[tuple[torch.Tensor, ...]]:
    """The batches of an inputs file, as `INPUTS_FORM` says: a list is always of batches, a tuple always one call's arguments."""
    held = load_tensors(path, what)
    batches = [batch if isinstance(batch, tuple) else (batch,) for batch in (held if isinstance(held, list) else [held])]
    if not batches or not all(batches) or not all(isinstance(tensor, torch.Tensor) for batch in batches for tensor in batch):
        text = "an empty list" if held == [] else "a list of other things" if isinstance(held, list) else f"a {type(held).__name__}"
        raise click.BadParameter(f"'{path}' must hold {INPUTS_FORM}; it holds {text}", param_hint=what)
    return batches


def load_float_model(text: str, device: str, what: str) -> torch.nn.Module:
    """A TorchScript file, or a target that gives a torch.nn.Module."""
    if os.path.isfile(text):
        return load_script(text, device, what).eval()
    model = call_target(text, what)
    if not isinstance(model, torch.nn.Module):
        raise click.BadParameter(f"'{text}' must give a torch.nn.Module, it gives a {type(model).__name__}", param_hint=what)
    return model.to(device)


def load_labelled_data(text: str, what: str):
    """A file of (inputs, labels) that torch.save wrote, or a target that gives labelled data."""
    if not os.path.isfile(text):
        return call_target(text, what)
    data = load_tensors(text, what)
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise click.BadParameter(f"'{text}' must hold (inputs, labels); it holds {_held(data)}", param_hint=what)
    return tuple(data)


def _held(data) -> str:
    return f"{len(data)} things" if isinstance(data, (tuple, list)) else f"a {type(data).__name__}"
