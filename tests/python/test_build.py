"""What CMake builds and how the package loads it: linkage, CUDA decision, one copy, the torch that it was built for."""

import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchquant
from torchquant import _build_info

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(torchquant.__file__).resolve().parent
LIBRARIES = sorted((PACKAGE / "lib").glob("*.so")) + sorted(PACKAGE.glob("_C*.so"))

_spec = importlib.util.spec_from_file_location("cmake_build", ROOT / "scripts" / "cmake_build.py")
cmake_build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cmake_build)


def run(*command, **kwargs):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **kwargs)


def python(code, **kwargs):
    return run(sys.executable, "-c", code, **kwargs)


def dynamic_section(library, tag):
    entries = run("readelf", "--dynamic", "--wide", library, check=True).stdout
    return re.findall(rf"\({tag}\).*\[(.*)\]", entries)


# ---- what was built -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_nothing_links_libpython_and_only_the_extension_links_torch_python(library):
    needed = dynamic_section(library, "NEEDED")
    assert "libc10.so" in needed
    assert not [name for name in needed if name.startswith("libpython")]
    assert ("libtorch_python.so" in needed) <= library.name.startswith("_C")


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_no_path_of_the_build_machine_is_baked_in(library):
    (runpath,) = dynamic_section(library, "RUNPATH")
    assert all(part.startswith("$ORIGIN") for part in runpath.split(":"))


def fatbin_images(library):
    """(kind, architecture) of each image in nvcc's fat binary: a header of 16 bytes, then images with headers of their own."""
    data, images, position = library.read_bytes(), set(), 0
    while (position := data.find(struct.pack("<I", 0xBA55ED50), position)) >= 0:
        _, _, header_size, size = struct.unpack_from("<IHHQ", data, position)
        image, end = position + header_size, position + header_size + size
        while image < end:
            kind, _, image_header_size, image_size = struct.unpack_from("<HHIQ", data, image)
            images.add(({1: "ptx", 2: "sass"}[kind], struct.unpack_from("<I", data, image + 28)[0]))
            image += image_header_size + image_size
        position = end
    return images


@pytest.mark.skipif(not _build_info.CUDA, reason="built without CUDA")
def test_cuda_library_holds_code_for_sm_80_and_sm_90_and_compute_80_ptx():
    if _build_info.CUDA_ARCHITECTURES != ["80-real", "90a-real", "80-virtual"]:
        pytest.skip("TORCHQUANT_CUDA_ARCHITECTURES was changed")
    assert fatbin_images(PACKAGE / "lib" / "libtorchquant_cuda.so") == {("sass", 80), ("sass", 90), ("ptx", 80)}


@pytest.mark.skipif(not (_build_info.CUDA and torch.version.cuda), reason="built without CUDA")
def test_cuda_library_resolves_all_symbols_without_a_gpu():
    result = python(f"import torchquant, ctypes; ctypes.CDLL({str(PACKAGE / 'lib' / 'libtorchquant_cuda.so')!r}, mode=2)", cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_a_second_build_rebuilds_nothing():
    directory = cmake_build.build_dir()
    if not (directory / "build.ninja").exists():
        pytest.skip(f"{directory} was not built by scripts/cmake_build.py")
    build = (sys.executable, ROOT / "scripts" / "cmake_build.py", "build")
    run(*build, check=True)
    before = {path: path.stat().st_mtime_ns for path in LIBRARIES}
    result = run(*build, check=True)
    assert "no work to do" in result.stdout
    assert "Configuring" not in result.stdout
    assert {path: path.stat().st_mtime_ns for path in LIBRARIES} == before


# ---- the CUDA decision ------------------------------------------------------------------------------------------------


def configure(build, *options, prefix=()):
    clean = {name: value for name, value in os.environ.items() if name not in ("CUDACXX", "CUDA_HOME", "CUDA_PATH")}
    return run(*prefix, cmake_build.tool("cmake"), "-S", ROOT, "-B", build, "-G", "Ninja",
               f"-DCMAKE_MAKE_PROGRAM={cmake_build.tool('ninja')}", f"-DPython3_EXECUTABLE={sys.executable}", *options,
               env=clean)


NO_NVCC = "-DTORCHQUANT_NVCC=/nowhere/nvcc"


def test_without_nvcc_auto_configures_a_cpu_build(tmp_path):
    result = configure(tmp_path, NO_NVCC, "-DTORCHQUANT_CUDA=AUTO")
    assert result.returncode == 0, result.stderr
    assert "CPU only, because no working nvcc was found" in result.stdout


def test_without_nvcc_cuda_on_is_an_error(tmp_path):
    result = configure(tmp_path, NO_NVCC, "-DTORCHQUANT_CUDA=ON")
    assert result.returncode != 0
    assert "TORCHQUANT_CUDA=ON, but no working nvcc was found" in " ".join(result.stderr.split())


def test_an_unknown_cuda_choice_is_an_error(tmp_path):
    result = configure(tmp_path, "-DTORCHQUANT_CUDA=maybe")
    assert result.returncode != 0
    assert "TORCHQUANT_CUDA must be AUTO, ON or OFF; got 'maybe'" in " ".join(result.stderr.split())


def test_with_the_whole_toolkit_hidden_a_cpu_build_configures(tmp_path):
    """An empty /usr/local/cuda in a private mount namespace: what find_package(Torch) of a CUDA build trips over."""
    hide = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /usr/local/cuda && exec "$@"', "sh")
    if not Path("/usr/local/cuda").is_dir():
        pytest.skip("this machine has no toolkit in /usr/local/cuda to hide")
    if shutil.which("unshare") is None or run(*hide, "true").returncode != 0:
        pytest.skip("this user may not make a mount namespace")
    result = configure(tmp_path, prefix=hide)
    assert result.returncode == 0, result.stderr
    assert "CPU only, because no working nvcc was found" in result.stdout


# ---- how the package loads ----------------------------------------------------------------------------------------------


@pytest.fixture
def package_copy(tmp_path):
    """The package's Python files without the libraries: a place to change what it was built for."""
    shutil.copytree(PACKAGE, tmp_path / "torchquant", ignore=shutil.ignore_patterns("lib", "include", "share", "*.so", "__pycache__"))
    return tmp_path


def last_line_of_failed_import(directory):
    result = python("import torchquant", cwd=directory)
    assert result.returncode == 1
    return result.stderr.strip().splitlines()[-1]


def test_another_torch_is_refused_in_one_sentence(package_copy):
    info = package_copy / "torchquant" / "_build_info.py"
    info.write_text(re.sub(r'TORCH_VERSION = ".*"', 'TORCH_VERSION = "1.13.1"', info.read_text()))
    assert last_line_of_failed_import(package_copy) == (
        f"ImportError: this torchquant was built for torch 1.13.1 but torch {torch.__version__} is installed: run "
        "`pip install 'torch==1.13.*'`, or rebuild torchquant here with `pip install --no-build-isolation --no-deps "
        "--force-reinstall .` in its source tree."
    )


def test_an_unbuilt_source_tree_says_how_to_build(package_copy):
    (package_copy / "torchquant" / "_build_info.py").unlink()
    message = last_line_of_failed_import(package_copy)
    assert message.startswith("ImportError: torchquant in ") and "has not been built: run `make build`" in message


def test_a_missing_library_is_named(package_copy):
    message = last_line_of_failed_import(package_copy)
    assert "torchquant could not load" in message and str(package_copy / "torchquant" / "lib" / "libtorchquant.so") in message


def test_a_second_copy_is_refused_before_torch_ends_the_process(tmp_path):
    other = shutil.copy(PACKAGE / "lib" / "libtorchquant.so", tmp_path)
    result = python(f"import torch; torch.ops.load_library({other!r}); import torchquant", cwd=ROOT)
    assert result.returncode == 1
    assert f"another copy of TorchQuant is already loaded in this process ({other})" in result.stderr


def test_the_same_copy_may_be_loaded_before_the_import():
    library = str(PACKAGE / "lib" / "libtorchquant.so")
    result = python(f"import torch; torch.ops.load_library({library!r}); import torchquant", cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_every_public_name_exists():
    result = python("import json, torchquant; print(json.dumps([n for n in torchquant.__all__ if not hasattr(torchquant, n)]))", cwd=ROOT)
    assert json.loads(result.stdout) == []
