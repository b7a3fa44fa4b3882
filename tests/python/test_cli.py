"""The command line: what each command prints, its JSON, and one sentence with exit code 1 for a mistake."""

import json
import os
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

import torchquant as tq
from torchquant import _build_info, _C, cli
from torchquant.errors import first_line, last_line


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A prepared TorchScript file and what the library itself makes of it."""
    folder = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3)).eval()
    example = torch.randn(2, 1, 8, 8)
    prepared = tq.prepare(net, example, tq.qconfigs.int8_static())
    tq.calibrate(prepared, [example])
    tq.trace(prepared, example).save(str(folder / "prepared.pt"))
    tq.convert(prepared, example).save(folder / "model.pt")
    torch.save(example, folder / "example.pt")
    return folder


def test_help_teaches_the_way_of_a_model():
    text = run("--help").output
    for word in ("prepare", "calibrate", "convert", "inspect", "bench", "doctor", "torchquant::load"):
        assert word in text
    for command in ("doctor", "convert", "inspect", "bench"):
        assert run(command, "--help").exit_code == 0
        assert "--json" in run(command, "--help").output


def test_python_m_torchquant():
    done = subprocess.run([sys.executable, "-m", "torchquant", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"torchquant, version {_build_info.VERSION}"


@pytest.mark.parametrize("line", [first_line, last_line])
def test_an_error_without_a_message_is_called_by_its_name(line):
    assert line(RuntimeError("")) == line(RuntimeError(" \n")) == "RuntimeError" and line(RuntimeError("why\n")) == "why"


def test_doctor():
    result = run("doctor", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["problems"] == []
    assert facts["built for torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["instruction set"] in facts["available instruction sets"]
    assert facts["available instruction sets"] == _C.available_isas()
    assert facts["self-test"] == "passed"
    assert run("doctor").exit_code == 0


def test_doctor_reports_a_problem_in_one_sentence():
    environment = {**os.environ, "TORCHQUANT_ISA": "mmx"}
    done = subprocess.run([sys.executable, "-m", "torchquant", "doctor"], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("Problem: ") and "mmx" in line and "reference" in line


def test_inspect(files):
    report = json.loads(run("inspect", files / "model.pt", "--json").stdout)
    assert [row["layer"] for row in report["rows"] if row["kind"] in ("conv2d", "linear")] == ["0", "3"]
    assert report["format_version"] == 1 and report["torchquant_version"] == _build_info.VERSION
    assert report["bytes"] == (files / "model.pt").stat().st_size
    assert "quantized_conv" in run("inspect", files / "model.pt").output


def test_inspect_refuses_a_foreign_file(files):
    result = run("inspect", files / "prepared.pt")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: torchquant: cannot load") and "not a TorchQuant file" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_convert_writes_what_the_library_writes(files, tmp_path):
    output = tmp_path / "converted.pt"
    report = json.loads(run("convert", files / "prepared.pt", output, "--json").stdout)
    x = torch.load(files / "example.pt")
    assert torch.equal(tq.load(output)(x), tq.load(files / "model.pt")(x))
    assert report["rows"] == tq.load(output).receipt.rows
    assert report["bytes"] < report["prepared_bytes"]


def test_convert_refuses_and_writes_nothing(files, tmp_path):
    result = run("convert", files / "example.pt", tmp_path / "out.pt")
    assert result.exit_code == 1 and "is not a TorchScript file" in result.stderr
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "float.pt"))
    result = run("convert", tmp_path / "float.pt", tmp_path / "out.pt")
    assert result.exit_code == 1 and "fake" in result.stderr
    assert not (tmp_path / "out.pt").exists()


def test_bench(files):
    report = json.loads(run("bench", files / "model.pt", "--input-shape", "2,1,8,8", "--runs", 20, "--json").stdout)
    assert report["runs"] == 20 and report["input_shapes"] == [[2, 1, 8, 8]]
    assert 0 < report["min_ms"] <= report["p50_ms"] <= report["p95_ms"] <= report["p99_ms"]
    by_example = json.loads(run("bench", files / "model.pt", "--example", files / "example.pt", "--runs", 3, "--json").stdout)
    assert by_example["input_shapes"] == [[2, 1, 8, 8]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.pt"], "give either --input-shape"),
        (["model.pt", "--input-shape", "2,x"], "expected integers separated by commas"),
        (["model.pt", "--input-shape", "0,1"], "sizes must be positive"),
        (["absent.pt", "--input-shape", "1,1,8,8"], "No such file or directory"),
    ],
)
def test_bench_refuses(files, arguments, message):
    result = run("bench", files / arguments[0], *arguments[1:])
    assert result.exit_code != 0
    assert message in result.stderr


def test_bench_explains_what_it_cannot_use(files, tmp_path):
    (tmp_path / "x.txt").write_text("x")
    torch.save({"x": torch.zeros(1)}, tmp_path / "dict.pt")
    cases = [
        (("--example", tmp_path / "x.txt"), "is not a file of tensors that torch.save wrote"),
        (("--example", tmp_path / "dict.pt"), "must hold a tensor, a tuple of tensors (the arguments of one call), or a list of such batches, from torch.save; it holds a dict"),
        (("--input-shape", "2,7"), "the model does not run on inputs of shape [2, 7]: "),
        (("--input-shape", "2,1,8,8", "--device", "nowhere"), "device"),
    ]
    if not torch.cuda.is_available():
        cases.append((("--input-shape", "2,1,8,8", "--device", "cuda"), "cannot use cuda: "))
    for arguments, message in cases:
        result = run("bench", files / "model.pt", *arguments)
        error = " ".join(result.stderr.split("Error: ")[-1].split())
        assert result.exit_code != 0 and message in error and "Traceback" not in result.output, result.output
        assert not isinstance(result.exception, (KeyError, AttributeError)) and len(result.stderr.splitlines()) <= 4


def test_convert_in_place_reports_the_size_that_was(files, tmp_path):
    prepared = tmp_path / "model.pt"
    prepared.write_bytes((files / "prepared.pt").read_bytes())
    size = prepared.stat().st_size
    report = json.loads(run("convert", prepared, prepared, "--json").stdout)
    assert report["prepared_bytes"] == size and report["bytes"] == prepared.stat().st_size != size
