"""The command line: `torchquant doctor | convert | inspect | bench | compare | calibration`, each with --json for scripts."""

from __future__ import annotations

import json
import os
import platform
import sys

import click
import torch
from rich.console import Console
from rich.table import Table

from torchquant import _build_info, _C, _load
from torchquant.commands.calibration import calibration
from torchquant.commands.compare import compare
from torchquant.convert import ON_FALLBACK, convert_script
from torchquant.quantized_model import load
from torchquant.receipt import Receipt

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_build_info.VERSION, prog_name="torchquant")
def main() -> None:
    """Quantization for PyTorch: train with fake-quant, convert to integers, run from Python or C++.

    \b
    The way of a model:
      1. Python   prepared = torchquant.prepare(model, example_inputs, qconfig)
                  torchquant.calibrate(prepared, batches)
                  torchquant.convert(prepared, example_inputs).save("model.pt")
      2. shell    torchquant inspect model.pt      which kernel runs each layer
                  torchquant bench model.pt --input-shape 1,3,224,224
                  torchquant compare float.pt model.pt --inputs batches.pt    which layer goes wrong
      3. C++      torchquant::load("model.pt"), see cpp_examples/run_quantized
    """


@main.command()
@as_json
def doctor(as_json: bool) -> None:
    """Say what is installed, what it was built for and whether it works here.

    Exits with 1 and one sentence for each problem found. TORCHQUANT_ISA=reference|avx2|avx512|avx512_vnni chooses the
    CPU instruction set.
    """
    problems: list[str] = []
    facts = _facts(problems)
    if as_json:
        _print_json({**facts, "problems": problems})
    else:
        _print_table("torchquant doctor", facts)
    for problem in problems:
        click.echo(f"Problem: {problem}", err=True)
    if problems:
        sys.exit(1)


@main.command()
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
    with _errors_as_sentences():
        try:
            script = torch.jit.load(prepared, map_location="cpu")
        except RuntimeError as error:
            raise click.ClickException(f"'{prepared}' is not a TorchScript file that can be read: {_first_line(error)}") from error
        model = convert_script(script, on_fallback)
        prepared_bytes = os.path.getsize(prepared)  # OUTPUT may be the same file
        model.save(output)
    report = {"output": output, "bytes": os.path.getsize(output), "prepared_bytes": prepared_bytes}
    _print_receipt(model.receipt, report, as_json)


@main.command()
@click.argument("file", type=click.Path())
@as_json
def inspect(file: str, as_json: bool) -> None:
    """Verify the saved model FILE and print which kernel runs each layer, or why it stayed float.

    Reads a file that QuantizedModel.save or torchquant::save wrote; exits with 1 if it is damaged or foreign. Nothing of the
    model is run.
    """
    with _errors_as_sentences():
        manifest = _C.read_manifest(file)
    receipt = Receipt.from_json(manifest.pop("receipt_json"))
    _print_receipt(receipt, {"file": file, "bytes": os.path.getsize(file), **manifest}, as_json)


@main.command()
@click.argument("file", type=click.Path())
@click.option("--input-shape", "shapes", multiple=True, metavar="N,C,H,W", help="Shape of an fp32 input of random values; repeat for more inputs.")
@click.option("--example", type=click.Path(exists=True, dir_okay=False), help="Inputs instead: a tensor or tuple of tensors from torch.save.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; torch's choice if not given.")
@click.option("--runs", type=click.IntRange(min=1), default=100, show_default=True)
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
    _check_device(device)
    with _errors_as_sentences():
        model = load(file, device)
    try:
        latency = _C.measure(model.script._c, [tensor.to(device) for tensor in inputs], warm_up, runs)
    except RuntimeError as error:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in inputs)
        raise click.ClickException(f"the model does not run on inputs of shape {shapes}: {_last_line(error)}") from error
    report = {
        "file": file,
        "bytes": os.path.getsize(file),
        "device": device,
        "threads": torch.get_num_threads(),
        "isa": _C.selected_isa(),
        "input_shapes": [list(tensor.shape) for tensor in inputs],
        **latency,
    }
    if as_json:
        _print_json(report)
    else:
        _print_table("torchquant bench", report)


def _facts(problems: list[str]) -> dict:
    facts = {
        "torchquant": _build_info.VERSION,
        "torch": torch.__version__,
        "built for torch": _build_info.TORCH_VERSION,
        "compiler": _build_info.COMPILER,
        "python": platform.python_version(),
        "library": str(_load.LIBRARY),
        "CUDA library": _cuda_library_state(problems),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "available instruction sets": _C.available_isas(),
    }
    try:
        facts["instruction set"] = _C.selected_isa()
        facts["self-test"] = "passed" if _self_test(problems) else "failed"
    except RuntimeError as error:  # TORCHQUANT_ISA names a set that is not here
        problems.append(_first_line(error))
    return facts


def _cuda_library_state(problems: list[str]) -> str:
    gpu = torch.cuda.is_available()
    if not _build_info.CUDA:
        if gpu:
            problems.append("a GPU is here but this torchquant was built without CUDA; rebuild it where nvcc is on PATH.")
        return "not built"
    if not _load.CUDA_LIBRARY.exists():
        problems.append(f"this torchquant was built with CUDA but {_load.CUDA_LIBRARY} is missing; install torchquant again.")
        return "missing"
    return "loaded" if gpu else "present, not loaded (no GPU)"


def _self_test(problems: list[str]) -> bool:
    """A tie on each side and a saturation, on every device that is here."""
    expected = torch.tensor([0, 2, -128], dtype=torch.int8)
    for device in ("cpu", "cuda") if torch.cuda.is_available() and _build_info.CUDA else ("cpu",):
        x, scale, zero_point = (torch.tensor(v, device=device) for v in ([0.25, 0.75, -900.0], [0.5], [0.0]))
        codes = torch.ops.torchquant.quantize(x, scale, zero_point, dtype=torch.int8).cpu()
        if not torch.equal(codes, expected):
            problems.append(f"quantize gives {codes.tolist()} on {device} where {expected.tolist()} is right; please report this.")
            return False
    return True


def _bench_inputs(shapes: tuple[str, ...], example: str | None) -> list[torch.Tensor]:
    if bool(shapes) == bool(example):
        raise click.UsageError("give either --input-shape (once per input) or --example")
    if example:
        return _load_example(example)
    torch.manual_seed(0)
    return [torch.randn(_parse_shape(shape)) for shape in shapes]


def _load_example(path: str) -> list[torch.Tensor]:
    try:
        inputs = torch.load(path, weights_only=True)
    except Exception as error:  # torch.load raises whatever its parsers meet
        raise click.BadParameter(f"'{path}' is not a file of tensors that torch.save wrote", param_hint="--example") from error
    inputs = [inputs] if isinstance(inputs, torch.Tensor) else inputs
    if not isinstance(inputs, (tuple, list)) or not all(isinstance(tensor, torch.Tensor) for tensor in inputs):
        raise click.BadParameter(f"'{path}' must hold a tensor or a tuple of tensors; it holds a {type(inputs).__name__}", param_hint="--example")
    return list(inputs)


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise click.BadParameter(_first_line(error), param_hint="--device") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter(f"'{name}' needs a GPU that torch can use, and there is none here", param_hint="--device")


def _parse_shape(text: str) -> list[int]:
    try:
        shape = [int(size) for size in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"expected integers separated by commas, such as 1,3,224,224; got '{text}'", param_hint="--input-shape") from None
    if min(shape) < 1:
        raise click.BadParameter(f"sizes must be positive; got '{text}'", param_hint="--input-shape")
    return shape


class _errors_as_sentences:
    """Turns the library's errors into click's: one line on stderr and exit code 1, no traceback."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, (RuntimeError, ValueError)):
            raise click.ClickException(str(error).strip()) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _last_line(error: Exception) -> str:
    """What went wrong, without the TorchScript code that comes before it."""
    return str(error).strip().splitlines()[-1].removeprefix("RuntimeError: ")


def _print_json(document: dict) -> None:
    click.echo(json.dumps(document, indent=2))


def _print_table(title: str, facts: dict) -> None:
    table = Table(title=title, show_header=False)
    for name, value in facts.items():
        text = f"{value:.4f}" if isinstance(value, float) else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        table.add_row(name, text)
    Console().print(table)


def _print_receipt(receipt: Receipt, report: dict, as_json: bool) -> None:
    if as_json:
        _print_json({**report, "summary": receipt.summary(), "rows": receipt.rows})
        return
    _print_table("TorchQuant file", report)
    Console().print(receipt.table())


main.add_command(calibration)
main.add_command(compare)


if __name__ == "__main__":
    main()
