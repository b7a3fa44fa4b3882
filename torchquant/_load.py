"""Loads the compiled library into the process, exactly once, or says in one sentence why it cannot. First import of the package."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

PACKAGE_DIR = Path(__file__).resolve().parent
LIBRARY = PACKAGE_DIR / "lib" / "libtorchquant.so"
CUDA_LIBRARY = PACKAGE_DIR / "lib" / "libtorchquant_cuda.so"


def _build_info():
    try:
        return importlib.import_module("torchquant._build_info")
    except ModuleNotFoundError:
        raise ImportError(
            f"torchquant in {PACKAGE_DIR} has not been built: run `make build` in the source tree, or "
            "`pip install --no-build-isolation .` to install it."
        ) from None


def _check_torch(built_for: str, installed: str) -> None:
    """A library built for one minor version of torch fails in another with an undefined symbol."""
    minor = ".".join(built_for.split(".")[:2])
    if installed.split(".")[:2] != minor.split("."):
        raise ImportError(
            f"this torchquant was built for torch {built_for} but torch {installed} is installed: run "
            f"`pip install 'torch=={minor}.*'`, or rebuild torchquant here with `pip install --no-build-isolation "
            "--no-deps --force-reinstall .` in its source tree."
        )


def _check_single_copy() -> None:
    """A second copy would register the ops twice, and torch answers that by ending the process."""
    try:
        mapped = Path("/proc/self/maps").read_text().splitlines()
    except OSError:  # not Linux, or /proc is not mounted
        return
    for path in {line.split(maxsplit=5)[-1] for line in mapped if line.endswith("/" + LIBRARY.name)}:
        if not LIBRARY.exists() or not LIBRARY.samefile(path):
            raise ImportError(
                f"another copy of TorchQuant is already loaded in this process ({path}), so {LIBRARY} was not loaded: "
                "use one of the two installations."
            )


def _load_library(path: Path) -> None:
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ImportError(f"torchquant could not load {path}: {error}.") from error


def load() -> None:
    info = _build_info()
    _check_torch(info.TORCH_VERSION, torch.__version__)
    _check_single_copy()
    _load_library(LIBRARY)
    if info.CUDA and torch.version.cuda and torch.cuda.is_available():
        _load_library(CUDA_LIBRARY)
