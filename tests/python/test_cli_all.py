"""What holds for every command of the command line: it teaches, it has --json, and it is plain where there is no terminal."""

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

import torchquant as tq
from torchquant import cli


def commands(group=cli.main, path=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ALL = list(commands())


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) for path, _ in ALL])
def test_every_command_teaches_and_has_json(path, command):
    text = CliRunner().invoke(cli.main, [*path, "--help"]).output
    assert "--json" in text and "-h, --help" in text
    assert command.help and command.get_short_help_str(80) and "..." not in command.get_short_help_str(80)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.opts} says nothing"


def test_the_list_of_commands_is_not_cut_short():
    text = CliRunner().invoke(cli.main, ["--help"]).output
    listed = text[text.index("Commands:") :]
    assert "..." not in listed and all(name in listed for name in cli.main.commands)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("plain") / "model.pt"
    x = torch.randn(4, 8)
    tq.quantize_model(torch.nn.Sequential(torch.nn.Linear(8, 4)).eval(), x, tq.qconfigs.int8_static(), [x]).save(path)
    return path


def test_no_escape_codes_and_no_bars_without_a_terminal(model, tmp_path):
    lines = [
        ["inspect", model],
        ["bench", model, "--input-shape", "4,8", "--runs", "3"],
        ["report", model, "--output", tmp_path / "r.html"],
    ]
    program = "import sys\nfrom torchquant import cli\nfor line in eval(sys.argv[1]):\n    cli.main(line, standalone_mode=False)\n"
    environment = {**os.environ, "PYTHONPATH": str(Path(tq.__file__).parents[1])}
    arguments = repr([[str(part) for part in line] for line in lines])
    done = subprocess.run([sys.executable, "-c", program, arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert re.fullmatch(r"([a-z ]+:( \d+ of \d+,)? \d+ s\n)*", done.stderr)  # of a machine so slow that progress is due
