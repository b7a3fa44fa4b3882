"""What serves a GPU machine, as far as it runs without one: scripts/gpu_check.sh, benchmarks/cuda, tests/check_cuda_spills.py."""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("training_ops", "inference_ops", "networks")


def gpu_check(*arguments, python=sys.executable):
    return subprocess.run(["bash", ROOT / "scripts" / "gpu_check.sh", *arguments], capture_output=True, text=True,
                          env={**os.environ, "TORCHQUANT_PYTHON": python})  # fmt: skip


def test_gpu_check_explains_itself():
    result = gpu_check("--help")
    assert result.returncode == 0
    for word in ("--only", "--results", "build,tests,sanitizer,benchmarks,cpp", "TORCHQUANT_PYTHON"):
        assert word in result.stdout


@pytest.mark.parametrize("arguments, text", [
    (["--only", "tests,nothing"], "--only takes build,tests,sanitizer,benchmarks,cpp, got 'nothing'."),
    (["--only"], "--only needs a list"),
    (["--fast"], "unknown argument '--fast'"),
])  # fmt: skip
def test_gpu_check_refuses_wrong_arguments(arguments, text):
    result = gpu_check(*arguments)
    assert result.returncode == 2 and text in result.stderr and not result.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_gpu_check_says_that_there_is_no_gpu():
    result = gpu_check("--only", "build")
    assert result.returncode == 1
    assert result.stderr == f"gpu_check: torch of '{sys.executable}' sees no CUDA GPU, so there is nothing to check on this machine.\n"


def test_gpu_check_says_that_there_is_no_torch():
    result = gpu_check("--only", "build", python="/bin/false")
    assert result.returncode == 1
    assert result.stderr == "gpu_check: '/bin/false' cannot import torch; TORCHQUANT_PYTHON names another Python.\n"


@pytest.fixture
def python_with_a_gpu(tmp_path):
    """Answers for a GPU, prints what it is told to run, and fails where that holds `failing`."""

    def make(capability, failing="nothing"):
        path = tmp_path / "python"
        path.write_text(f"""#!/bin/sh
case "$*" in
  *get_device_capability*) echo "{capability} NVIDIA H200" ;;
  *gpu_check_*) exec {sys.executable} "$@" ;;
  *{failing}*) exit 3 ;;
  *) echo "ran: $* for $TORCHQUANT_CUDA_ARCHITECTURES" ;;
esac
""")
        path.chmod(0o755)
        return str(path)

    return make


def test_gpu_check_runs_the_parts_in_order_and_writes_json(python_with_a_gpu, tmp_path):
    result = gpu_check("--results", tmp_path / "results", python=python_with_a_gpu("9 0", failing="inference_ops"))
    assert result.returncode == 1  # a benchmark failed, and the others went on
    ran = [line for line in result.stdout.splitlines() if line.startswith("ran: ")]
    assert all(line.endswith("for 90a-real") for line in ran)
    assert [word in line for word, line in zip(("cmake_build.py build", "test_cuda_ops.py"), ran)] == [True, True]
    document = json.loads((tmp_path / "results" / "gpu_check_nvidia_h200.json").read_text())
    assert document["gpu"] == "NVIDIA H200"
    status = {row["what"]: row["status"] for row in document["rows"] if row["part"] == "benchmarks"}
    assert status == {
        "benchmarks/cuda/training_ops.py": "passed", "benchmarks/cuda/inference_ops.py": "failed (3)", "benchmarks/cuda/networks.py": "passed",
    }  # fmt: skip
    assert [row["part"] for row in document["rows"]][-1] == "cpp" and "skipped: nine minutes" in document["rows"][-1]["status"]


def test_gpu_check_refuses_a_gpu_that_is_too_old(python_with_a_gpu, tmp_path):
    result = gpu_check("--results", tmp_path, python=python_with_a_gpu("7 5"))
    assert result.returncode == 1 and "is of compute capability 7.5, and the kernels need 8.0 (Ampere) or newer." in result.stderr


def test_the_parts_of_gpu_check_fit_into_nine_minutes():
    script = (ROOT / "scripts" / "gpu_check.sh").read_text().split("cpp_part()")[0]
    limits = [int(number) for number in re.findall(r" run (?:build|tests) (\d+) ", script)]
    limits += 2 * [int(number) for number in re.findall(r" run sanitizer (\d+) ", script)]  # memcheck and racecheck
    limits += [int(number) for number in re.findall(r"[a-z]:(\d+)", script)]
    assert len(limits) == 7 and sum(limits) < 540


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "cuda")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield importlib.import_module
    for name in ("common", "harness", *SCRIPTS):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("script", SCRIPTS)
def test_benchmarks_import_and_explain_themselves_without_a_gpu(script, benchmark, capsys):
    module = benchmark(script)
    with pytest.raises(SystemExit, match="0"):
        module.main(module.__doc__, script, module.FAMILIES, ["--help"])
    assert "--only" in capsys.readouterr().out
    if not torch.cuda.is_available():
        assert module.main(module.__doc__, script, module.FAMILIES, []) == 1
        assert capsys.readouterr().err == benchmark("common").NO_GPU + "\n"


def test_a_time_is_a_share_of_the_slower_limit(benchmark):
    common = benchmark("common")
    limits = common.Limits(bytes_per_second=1e12, bf16_per_second=1e14, int8_per_second=2e14)
    memory = common.Case("copy", {}, bytes_moved=10**9, operations=10**9)
    assert common.share_of_limit(memory, 2.0, limits) == pytest.approx(0.5)
    for unit, share in (("int8", 0.5), ("bf16", 1.0)):
        compute = common.Case("product", {}, bytes_moved=1, operations=10**11, unit=unit)
        assert common.share_of_limit(compute, 1.0, limits) == pytest.approx(share)
    row = common.summary(memory, {"torchquant": 2.0, "torch": 5.0}, limits)
    assert row["times_faster_than"] == {"torch": 2.5}


def test_a_benchmark_that_is_stopped_keeps_what_it_measured(benchmark, monkeypatch, capsys):
    common = benchmark("common")
    monkeypatch.setattr(common, "medians", lambda calls, seconds: dict.fromkeys(calls, 1.0))

    def cases(stopped):
        yield common.Case("first", {"torchquant": None})
        if stopped:
            common.end_the_run(None, None)

    families = {name: ((), lambda name=name: cases(name == "b")) for name in "abc"}
    options = argparse.Namespace(only=None, seconds=0.1)
    rows, skipped = common.run_cases(families, options, common.Limits(1e12, 1e14, 2e14))
    assert len(rows) == 2 and skipped == {"b": "the time was up", "c": "the time was up"}
    assert "stopped at b" in capsys.readouterr().out


def test_benchmarks_name_ops_that_this_build_lacks(benchmark):
    assert benchmark("common").missing_ops(("no_such_op",)) == ["no_such_op"]


def test_the_networks_have_the_sizes_of_their_papers(benchmark):
    networks = benchmark("networks")
    with torch.device("meta"):
        resnet, bert = networks.resnet50(), networks.BertBase()
    assert sum(p.numel() for p in resnet.parameters()) == 25_557_032
    assert sum(p.numel() for p in bert.encoder.parameters()) == 85_054_464


REPORT = """
Fatbin elf code:
================
arch = sm_90a

Resource usage:
 Common:
  GLOBAL:0
 Function _Z4fastPf:
  REG:32 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:540 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _Z4slowPf:
  REG:255 STACK:{stack} SHARED:0 LOCAL:0 CONSTANT[0]:540 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def check_spills(tmp_path, report, *allowed):
    tool = tmp_path / "cuobjdump"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{report}\nEND\n")
    tool.chmod(0o755)
    command = [sys.executable, ROOT / "tests" / "check_cuda_spills.py", tool, "library.so", *allowed]
    return subprocess.run(command, capture_output=True, text=True)


def test_kernels_in_local_memory_are_found(tmp_path):
    clean = check_spills(tmp_path, REPORT.format(stack=0))
    assert clean.returncode == 0 and "2 kernels checked" in clean.stdout
    spilled = check_spills(tmp_path, REPORT.format(stack=64))
    assert spilled.returncode == 1 and "on sm_90a: 64 bytes" in spilled.stdout
    assert check_spills(tmp_path, REPORT.format(stack=64), "slow").returncode == 0
    assert check_spills(tmp_path, "").returncode == 1
