"""`torchquant bench`: the latency of a saved model."""

from __future__ import annotations

import os

import click
import torch

from torchquant import _C
from torchquant.commands.common import INPUTS_FORM, as_json, check_device, errors_as_sentences, load_batches, print_json, print_table
from torchquant.errors import last_line
from torchquant.progress import ProgressBar
from torchquant.quantized_model import load


@click.command(short_help="Latency of a saved model.")
@click.argument("file", type=click.Path())
@click.option("--input-shape", "shapes", multiple=True, metavar="N,C,H,W", help="Shape of an fp32 input of random values; repeat for more inputs.")
@click.option("--example", type=click.Path(exists=True, dir_okay=False), help=f"Inputs instead, in a file: {INPUTS_FORM}; the first batch is timed.")
@click.option("--device", default="cpu", show_default=True, help="Where the model runs: cpu, cuda, cuda:1.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; torch's choice if not given.")
@click.option("--runs", type=click.IntRange(min=1), default=100, show_default=True, help="Timed calls.")
@click.option("--warm-up", type=click.IntRange(min=0), default=10, show_default=True, help="Runs before counting starts.")
@as_json
def bench(file: str, shapes: tuple[str, ...], example: str | None, device: str, threads: int | None, runs: int, warm_up: int, as_json: bool) -> None:
    """Measure the latency of the saved model FILE: the time that 50, 95 and 99 of 100 calls stay below.

    \b
    torchquant bench model.pt --input-shape 1,3,224,224
    torchquant bench encoder.pt --example tokens.pt --threads 1 --json
    """
    inputs = _bench_inputs(shapes, example)
    if threads:
        torch.set_num_threads(threads)
    check_device(device)
    with errors_as_sentences():
        model = load(file, device)
    try:
        with ProgressBar("measuring"):
            latency = _C.measure(model.script._c, [tensor.to(device) for tensor in inputs], warm_up, runs)
    except RuntimeError as error:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in inputs)
        reason = last_line(error).removeprefix("RuntimeError: ")
        raise click.ClickException(f"the model does not run on inputs of shape {shapes}: {reason}") from error
    report = {
        "file": file,
        "bytes": os.path.getsize(file),
        "device": device,
        "threads": torch.get_num_threads(),
        "isa": _C.selected_isa(),
        "input_shapes": [list(tensor.shape) for tensor in inputs],
        **latency,
        "packed_weights": packing_cost(model.packed_weights()),
    }
    if as_json:
        print_json(report)
    else:
        print_table("torchquant bench", report)


def packing_cost(packed: list[dict]) -> dict:
    return {key: sum(row[key] for row in packed) for key in ("bytes", "milliseconds")}


def _bench_inputs(shapes: tuple[str, ...], example: str | None) -> list[torch.Tensor]:
    if bool(shapes) == bool(example):
        raise click.UsageError("give either --input-shape (once per input) or --example")
    if example:
        return list(load_batches(example, "--example")[0])
    torch.manual_seed(0)
    return [torch.randn(_parse_shape(shape)) for shape in shapes]


def _parse_shape(text: str) -> list[int]:
    try:
        shape = [int(size) for size in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"expected integers separated by commas, such as 1,3,224,224; got '{text}'", param_hint="--input-shape") from None
    if min(shape) < 1:
        raise click.BadParameter(f"sizes must be positive; got '{text}'", param_hint="--input-shape")
    return shape
