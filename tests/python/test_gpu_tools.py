"""What serves a GPU machine, as far as it runs without one: scripts/gpu_check.sh, benchmarks/cuda, tests/check_cuda_spills.py."""

import importlib
import os
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
    for word in ("--only", "--results", "build,tests,sanitizer,benchmarks", "TORCHQUANT_NLOHMANN_JSON_DIR"):
        assert word in result.stdout


@pytest.mark.parametrize("arguments, text", [
    (["--only", "tests,nothing"], "--only takes build,tests,sanitizer,benchmarks, got 'nothing'."),
    (["--only"], "--only needs a list"),
    (["--fast"], "unknown argument '--fast'"),
])  # fmt: skip
def test_gpu_check_refuses_wrong_arguments(arguments, text):
    result = gpu_check(*arguments)
    assert result.returncode == 2 and text in result.stderr and not result.stdout


def test_gpu_check_says_that_there_is_no_gpu():
    result = gpu_check("--only", "build", python="/bin/false")
    assert result.returncode == 1
    assert result.stderr == "gpu_check: torch of '/bin/false' sees no CUDA GPU, so there is nothing to check on this machine.\n"


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
