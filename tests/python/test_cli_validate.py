"""`torchquant validate`: files and targets, JSON and table, limits as exit code, and one sentence for each mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import torchquant as tq
from torchquant import cli

MODULE = '''
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))

def data():
    torch.manual_seed(1)
    x = torch.randn(40, 6)
    with torch.no_grad():
        return x, build()(x).argmax(1)

def loader():
    x, labels = data()
    return [(x[:20], labels[:20]), (x[20:], labels[20:])]

def loss(outputs, labels):
    return torch.nn.functional.cross_entropy(outputs, labels, reduction="none")

def nan(outputs, labels):
    return float("nan")

def broken():
    raise OSError("disk on fire")

number = 3
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validate")
    (folder / "cli_validate_net.py").write_text(MODULE)
    namespace: dict = {}
    exec(MODULE, namespace)
    model, (x, labels) = namespace["build"]().eval(), namespace["data"]()
    tq.quantize_model(model, x, tq.qconfigs.int8_static(), [x]).save(folder / "model.pt")
    torch.jit.trace(model, x).save(str(folder / "float.pt"))
    torch.save((x, labels), folder / "test.pt")
    torch.save({"x": x}, folder / "dict.pt")
    torch.save((x, labels[:7]), folder / "short.pt")
    torch.save((x[:0], labels[:0]), folder / "empty.pt")
    torch.save((x[:, :5], labels), folder / "narrow.pt")
    return folder


@pytest.fixture
def run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))

    def run(*arguments):
        return CliRunner().invoke(cli.main, ["validate", "--runs", "2", "--processes", "0", *map(str, arguments)])

    return run


def test_json_of_files(run):
    result = run("float.pt", "model.pt", "test.pt", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["accuracy"]["float"] == 1 and report["accuracy"]["samples"] == 40
    assert report["quantized"]["latency_ms"]["runs"] == 2 and report["failures"] == [] and report["limits"] == {}
    assert "Failed" not in result.stderr


def test_targets_give_the_same_as_files(run):
    by_file = json.loads(run("float.pt", "model.pt", "test.pt", "--json").stdout)
    for data in ("cli_validate_net:data", "cli_validate_net:loader"):
        by_target = json.loads(run("cli_validate_net:build", "model.pt", data, "--json").stdout)
        assert by_target["accuracy"] == by_file["accuracy"]


def test_a_frozen_file_and_one_saved_in_training_mode(run, folder):
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Dropout(0.9))
    torch.jit.script(model).save(str(folder / "training.pt"))
    torch.jit.freeze(torch.jit.script(model.eval())).save(str(folder / "frozen.pt"))
    accuracy = [json.loads(run(name, "model.pt", "test.pt", "--json").stdout)["accuracy"]["float"] for name in ("training.pt", "frozen.pt")]
    assert accuracy[0] == accuracy[1]


def test_a_metric_of_the_user(run):
    accuracy = json.loads(run("float.pt", "model.pt", "test.pt", "--metric", "cli_validate_net:loss", "--lower-is-better", "--json").stdout)["accuracy"]
    assert accuracy["metric"] == "loss" and not accuracy["higher_is_better"]
    assert accuracy["drop"] == pytest.approx(accuracy["quantized"] - accuracy["float"])


def test_the_table(run):
    text = run("float.pt", "model.pt", "test.pt").output
    for word in ("top-1 accuracy", "latency P50", "latency P99", "throughput", "file", "fallbacks"):
        assert word in text


def test_limits_decide_the_exit_code(run):
    assert run("float.pt", "model.pt", "test.pt", "--max-accuracy-drop", 1, "--max-fallbacks", 0).exit_code == 0
    result = run("float.pt", "model.pt", "test.pt", "--max-size-ratio", 0.01, "--max-latency-ratio", 0.0001, "--max-accuracy-drop", 1, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["limits"] == {"max_size_ratio": 0.01, "max_latency_ratio": 0.0001, "max_accuracy_drop": 1}
    lines = result.stderr.strip().splitlines()
    assert lines == [f"Failed: {failure}" for failure in report["failures"]] and len(lines) == 2
    ratio = report["ratios"]["size"]
    assert f"Failed: the file size ratio (quantized / float) is {ratio:.4g}, and --max-size-ratio allows 0.01" in lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent.pt", "model.pt", "test.pt"), "'absent.pt' is neither a file nor a target such as package.module:function"),
        (("test.pt", "model.pt", "test.pt"), "'test.pt' is not a TorchScript file that can be read"),
        (("float.pt", "float.pt", "test.pt"), "not a TorchQuant file"),
        (("float.pt", "model.pt", "dict.pt"), "'dict.pt' must hold (inputs, labels); it holds a dict"),
        (("float.pt", "model.pt", "cli_validate_net.py"), "'cli_validate_net.py' is not a file of tensors that torch.save wrote"),
        (("float.pt", "model.pt", "short.pt"), "batch 0 has 40 samples and labels of shape [7]; each sample needs one label"),
        (("float.pt", "model.pt", "empty.pt"), "batch 0 of data is empty (inputs of shape [0, 6])"),
        (("float.pt", "model.pt", "narrow.pt"), "the float model does not run on batch 0 of shape [32, 5]: mat1 and mat2"),
        (("no_such_module:build", "model.pt", "test.pt"), "'no_such_module:build' cannot be imported: ModuleNotFoundError"),
        (("cli_validate_net:missing", "model.pt", "test.pt"), "has no attribute 'missing'"),
        (("cli_validate_net:number", "model.pt", "test.pt"), "'cli_validate_net:number' must give a torch.nn.Module, it gives a int"),
        (("float.pt", "model.pt", "cli_validate_net:broken"), "'cli_validate_net:broken' failed when called without arguments: OSError: disk on fire"),
        (("float.pt", "model.pt", "test.pt", "--metric", "cli_validate_net:nan"), "metric gives nan for the float model"),
        (("float.pt", "model.pt", "test.pt", "--metric", "cli_validate_net:number"), "metric must be callable as metric(outputs, labels), got int"),
        (("float.pt", "model.pt", "test.pt", "--max-latency-ratio", "nan"), "a limit must be a finite number, got nan"),
        (("float.pt", "model.pt", "test.pt", "--confidence", "95"), "95.0 is not in the range 0<x<1"),
    ],
)
def test_mistakes(run, arguments, message):
    result = run(*arguments)
    assert result.exit_code != 0 and result.stdout == ""
    assert message in " ".join(result.stderr.split()), result.output
    assert isinstance(result.exception, SystemExit) and len(result.stderr.splitlines()) <= 4


def test_a_target_in_the_current_folder_and_nothing_but_json_without_a_terminal(folder):
    command = [sys.executable, "-m", "torchquant", "validate", "cli_validate_net:build", "model.pt", "test.pt"]
    options = ["--runs", "1", "--processes", "0", "--json"]
    package_root = str(Path(tq.__file__).parents[1])
    done = subprocess.run([*command, *options], cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": package_root})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accuracy"]["float"] == 1
    assert "\x1b" not in done.stdout + done.stderr
