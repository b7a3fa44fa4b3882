"""The C++ programs, built as a user builds them: they agree with Python, and link no Python."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchquant as tq
from torchquant import _build_info

SOURCE_DIR = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(SOURCE_DIR / "scripts"))
import cmake_build  # noqa: E402


@pytest.fixture(scope="module")
def programs():
    subprocess.run([sys.executable, SOURCE_DIR / "scripts" / "cmake_build.py", "examples"], check=True)
    folder = cmake_build.build_dir() / "cpp_examples"
    return {name: folder / name / name for name in ("run_quantized", "convert", "sensitivity_scan")}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cpp")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5)).eval()
    x = torch.randn(7, 1, 8, 8)
    prepared = tq.prepare(net, x, tq.qconfigs.int8_static())
    tq.calibrate(prepared, [x])
    tq.trace(prepared, x).save(str(folder / "prepared.pt"))
    quantized = tq.convert(prepared, x)
    quantized.save(folder / "model.pt")
    torch.save(x, folder / "x.pt")
    torch.save(x[:0], folder / "no_rows.pt")
    torch.save((), folder / "no_tensors.pt")
    torch.save((x, x[:3]), folder / "uneven.pt")
    torch.save([x, x], folder / "two_batches.pt")
    return folder, x, quantized


def run(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


def test_no_python_is_linked(programs):
    for program in programs.values():
        needed = [line for line in run("readelf", "-d", program).stdout.splitlines() if "(NEEDED)" in line]
        assert any("libtorchquant.so" in line for line in needed)
        assert not any("python" in line for line in needed)  # a run path may hold the word, a library may not


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_run_quantized_predicts_what_python_predicts(programs, case, batch):
    folder, x, quantized = case
    done = run(programs["run_quantized"], folder / "model.pt", folder / "x.pt", "--batch", batch, "--runs", 5, "--json", "--output", folder / "y.pt")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["predictions"] == quantized(x).argmax(-1).tolist()
    assert report["rows"] == 7 and report["runs"] == 5 and report["p50_ms"] > 0
    assert torch.equal(torch.load(folder / "y.pt"), quantized(x))


def test_convert_gives_the_same_file_as_python(programs, case):
    folder, x, quantized = case
    done = run(programs["convert"], folder / "prepared.pt", folder / "converted.pt", "--receipt", folder / "receipt.json")
    assert done.returncode == 0, done.stderr
    converted = tq.load(folder / "converted.pt")
    assert torch.equal(converted(x), quantized(x))
    assert json.loads((folder / "receipt.json").read_text())["rows"] == converted.receipt.rows


@pytest.mark.parametrize("batch", [3, 7])
def test_sensitivity_scan_ranks_as_python_does(programs, case, batch):
    folder, x, _ = case
    done = run(programs["sensitivity_scan"], folder / "prepared.pt", folder / "x.pt", "--batch", batch, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5)).eval()
    report = tq.sensitivity_scan(net, x, [x], None, tq.qconfigs.int8_static(), measure_latency=False)
    assert [row["layer"] for row in result["ranking"]] == [row["layer"] for row in report.ranking]
    for ours, row in zip(result["ranking"], report.ranking):
        assert ours["alone_sqnr_db"] == pytest.approx(row["alone_sqnr_db"], abs=1e-3)
        assert ours["but_one_sqnr_db"] == pytest.approx(row["but_one_sqnr_db"], abs=1e-3)
    assert result["quantized_sqnr_db"] == pytest.approx(report.candidates["int8"]["sqnr_db"], abs=1e-3)
    table = run(programs["sensitivity_scan"], folder / "prepared.pt", folder / "x.pt").stdout.splitlines()
    assert [line.split()[0] for line in table[1:]] == [row["layer"] for row in result["ranking"]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_cannot_be_used_is_one_sentence(programs, case):
    """The program links torch's CPU half alone: that it asks the driver shows that both CUDA halves were found and loaded."""
    done = run(programs["run_quantized"], case[0] / "model.pt", case[0] / "x.pt", "--device", "cuda")
    reason = "driver|GPU" if _build_info.CUDA and torch.version.cuda else "built without CUDA"
    assert done.returncode == 1 and re.match(f"torchquant: cannot use cuda: .*({reason})[^\n]*\n$", done.stderr), done.stderr


@pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("TORCHQUANT_REQUIRE_CUDA") != "1", reason="no CUDA GPU: the kernels are compiled, not run"
)
def test_run_quantized_predicts_on_the_gpu_what_it_predicts_on_the_cpu(programs, case):
    folder, x, quantized = case
    done = run(programs["run_quantized"], folder / "model.pt", folder / "x.pt", "--device", "cuda", "--runs", 5, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["predictions"] == quantized(x).argmax(-1).tolist()


@pytest.mark.parametrize("name", ["tensor", "tuple", "list", "list of tuples", "one batch", "empty list", "list of lists"])
def test_a_file_of_inputs_means_the_same_in_cpp_and_in_python(programs, case, name):
    folder, x, _ = case
    held = {"tensor": x, "tuple": (x,), "list": [x[:3], x[3:]], "list of tuples": [(x[:3],), (x[3:],)], "one batch": [x],
            "empty list": [], "list of lists": [[x]]}[name]  # fmt: skip
    torch.save(held, folder / "held.pt")
    ours = run(programs["sensitivity_scan"], folder / "prepared.pt", folder / "held.pt", "--json")
    theirs = run(sys.executable, "-m", "torchquant", "scan", folder / "prepared.pt", folder / "held.pt", "--json")
    assert (ours.returncode == 0) == (theirs.returncode == 0) == (name not in ("empty list", "list of lists"))
    if ours.returncode == 0:
        assert json.loads(ours.stdout)["quantized_sqnr_db"] == pytest.approx(json.loads(theirs.stdout)["quantized_sqnr_db"], abs=1e-5)
    else:
        form = "must hold a tensor, a tuple of tensors (the arguments of one call), or a list of such batches, from torch.save"
        assert form in " ".join(ours.stderr.split()) and form in " ".join(theirs.stderr.replace("│", " ").split())


@pytest.mark.parametrize("name", ["run_quantized", "convert", "sensitivity_scan"])
def test_help_teaches(programs, name):
    for option in ("--help", "-h"):
        done = run(programs[name], option)
        assert done.returncode == 0 and not done.stderr
    for part in (f"usage: {name} ", "In Python:  ", f"Here:       {name} ", "--help"):
        assert part in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sensitivity_scan", "prepared.pt"), "expected PREPARED and INPUTS"),
        (("sensitivity_scan", "prepared.pt", "x.pt", "--batch", "0"), "--batch needs a positive number"),
        (("sensitivity_scan", "prepared.pt", "no_rows.pt"), "'no_rows.pt' holds a tensor without rows"),
        (("sensitivity_scan", "model.pt", "x.pt"), "no layer with a fake-quantized weight"),
        (("run_quantized", "model.pt"), "expected MODEL and INPUTS"),
        (("run_quantized", "model.pt", "x.pt", "--runs", "none"), "--runs needs a positive number up to 9223372036854775807; got 'none'"),
        (("run_quantized", "model.pt", "x.pt", "--runs", "00"), "--runs needs a positive number up to 9223372036854775807; got '00'"),
        (("run_quantized", "model.pt", "x.pt", "--threads", "4294967297"), "--threads needs a positive number up to 2147483647; got '4294967297'"),
        (("run_quantized", "model.pt", "no_rows.pt"), "'no_rows.pt' holds a tensor without rows"),
        (("run_quantized", "model.pt", "no_tensors.pt"), "'no_tensors.pt' holds an empty tuple"),
        (("run_quantized", "model.pt", "two_batches.pt"), "'two_batches.pt' holds a list of 2 batches, and the arguments of one call are wanted"),
        (("run_quantized", "model.pt", "uneven.pt"), "'uneven.pt' holds tensors with different numbers of rows"),
        (("run_quantized", "model.pt", "x.pt", "--device", "gpu"), "--device needs cpu, cuda or cuda:N; got 'gpu'"),
        (("run_quantized", "x.pt", "x.pt"), "is not a TorchQuant file"),
        (("run_quantized", "model.pt", "absent.pt"), "No such file or directory"),
        (("convert", "prepared.pt"), "expected PREPARED and OUTPUT"),
        (("convert", "prepared.pt", "nowhere/out.pt"), "cannot write 'nowhere/out.pt'"),
    ],
)
def test_mistakes_are_one_sentence(programs, case, arguments, message):
    program, *files = arguments
    done = subprocess.run([programs[program], *files], cwd=case[0], capture_output=True, text=True)
    assert done.returncode != 0
    assert message in done.stderr.splitlines()[0]
