"""The wheel: what it holds, that it works installed, and that a C++ project builds against it. Reuses the objects of build/."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch

from torchquant import _build_info

ROOT = Path(__file__).resolve().parents[2]

CONSUMER_CMAKE = """
cmake_minimum_required(VERSION 3.25)
project(consumer LANGUAGES CXX)
find_package(TorchQuant REQUIRED)
add_executable(consumer main.cpp)
target_link_libraries(consumer PRIVATE TorchQuant::torchquant)
if(TARGET TorchQuant::torchquant_cuda)
  add_executable(cuda_consumer main.cpp)
  target_link_libraries(cuda_consumer PRIVATE TorchQuant::torchquant_cuda)
endif()
"""
# Calls no function of the library: the ops must be there because it is linked, not because it is used.
CONSUMER_MAIN = """
#include <torchquant/torchquant.h>

#include <ATen/core/dispatch/Dispatcher.h>
#include <cstdio>

int main() {
  auto op = c10::Dispatcher::singleton().findSchema({"torchquant::fake_quantize", ""});
  std::puts(op ? "fake_quantize is registered" : "fake_quantize is missing");
  return op ? 0 : 1;
}
"""


def run(*command, **kwargs):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, **kwargs)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    directory = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", directory, ROOT)
    (path,) = directory.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A clean environment that holds the wheel and, through a .pth file, sees the torch of this one."""
    directory = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", directory)
    python = directory / "bin" / "python"
    site_packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())
    (site_packages / "torch_of_the_tests.pth").write_text(sysconfig.get_paths()["purelib"])
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel)
    return python


def test_wheel_holds_library_headers_and_cmake_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "torchquant").rglob("*.py")}
    assert sources <= names
    headers = {path.relative_to(ROOT / "csrc").as_posix() for path in (ROOT / "csrc").rglob("*.h") if "python" not in path.parts}
    assert {f"torchquant/include/torchquant/{header}" for header in headers} <= names
    assert {"torchquant/lib/libtorchquant.so", "torchquant/share/cmake/TorchQuant/TorchQuantConfig.cmake"} <= names
    assert "torchquant/report/template.html" in names
    assert not [name for name in names if name.endswith((".cpp", ".cu", ".pyc")) or name.startswith(("tests/", "csrc/"))]


def test_wheel_is_bound_to_this_python_and_this_torch(wheel):
    archive = zipfile.ZipFile(wheel)
    text = {name.rsplit("/", 1)[-1]: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    interpreter = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"Tag: {interpreter}-{interpreter}-linux_" in text["WHEEL"]
    major, minor = torch.__version__.split(".")[:2]
    assert f"Requires-Dist: torch=={major}.{minor}.*" in text["METADATA"]
    assert "torchquant = torchquant.cli:main" in text["entry_points.txt"]


def test_installed_package_runs_an_op(installed, tmp_path):
    code = (
        "import torch, torchquant, pathlib\n"
        "assert 'site-packages' in torchquant.__file__, torchquant.__file__\n"
        "y = torchquant.fake_quantize(torch.tensor([0.26]), torch.tensor([0.5]), torch.tensor([0.0]), quant_min=0, quant_max=255)\n"
        "print(y.item())"
    )
    assert float(run(installed, "-c", code, cwd=tmp_path)) == 0.5


def test_installed_command_runs(installed, tmp_path):
    assert "convert" in run(installed.parent / "torchquant", "--help", cwd=tmp_path)


def test_cmake_project_builds_against_the_installed_package(installed, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(CONSUMER_CMAKE)
    (tmp_path / "main.cpp").write_text(CONSUMER_MAIN)
    prefix = run(installed, "-c", "import torch, torchquant; print(torchquant.cmake_prefix_path, torch.utils.cmake_prefix_path, sep=';')", cwd=tmp_path)
    bin_dir = Path(sys.executable).parent
    cmake = bin_dir / "cmake" if (bin_dir / "cmake").exists() else "cmake"
    run(cmake, "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix.strip()}")
    run(cmake, "--build", tmp_path / "build")
    assert run(tmp_path / "build" / "consumer") == "fake_quantize is registered\n"
    if _build_info.CUDA:
        needed = run("readelf", "--dynamic", tmp_path / "build" / "cuda_consumer")
        assert "libtorchquant_cuda.so" in needed and "libtorchquant.so" in needed
