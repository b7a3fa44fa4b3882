"""The command line: `torchquant`, whose commands stand in torchquant/commands/, each with --json for scripts."""

from __future__ import annotations

import click

from torchquant import _build_info
from torchquant.commands.bench import bench
from torchquant.commands.convert import convert
from torchquant.commands.doctor import doctor
from torchquant.commands.inspect import inspect


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
      3. C++      torchquant::load("model.pt"), see cpp_examples/run_quantized
    """


main.add_command(doctor)
main.add_command(convert)
main.add_command(inspect)
main.add_command(bench)

if __name__ == "__main__":
    main()
