"""The command line: `torchquant`, whose commands stand in torchquant/commands/, each with --json for scripts."""

from __future__ import annotations

import click

from torchquant import _build_info
from torchquant.commands.bench import bench
from torchquant.commands.calibration import calibration
from torchquant.commands.compare import compare
from torchquant.commands.convert import convert
from torchquant.commands.doctor import doctor
from torchquant.commands.inspect import inspect
from torchquant.commands.report import report
from torchquant.commands.scan import scan
from torchquant.commands.validate import validate
from torchquant.progress import plain_lines


class _InOrder(click.Group):
    """Lists its commands in the order of their use, not of the alphabet."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"]})
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
                  torchquant validate float.pt model.pt test.pt     accuracy, speed, size against the float model
                  torchquant compare float.pt model.pt --inputs batches.pt    which layer goes wrong
                  torchquant scan --model net:build ...             which layers to leave float
                  torchquant report model.pt --output report.html   all of it on one page
      3. C++      torchquant::load("model.pt"), see cpp_examples/run_quantized
    """
    click.get_current_context().with_resource(plain_lines())


main.add_command(doctor)
main.add_command(convert)
main.add_command(inspect)
main.add_command(bench)
main.add_command(validate)
main.add_command(compare)
main.add_command(scan)
main.add_command(report)
main.add_command(calibration)

if __name__ == "__main__":
    main()
