"""Configures, builds and installs with CMake. The Makefile runs it and setup.py imports it, so both build the same way.

    python scripts/cmake_build.py build | tests | benchmarks | examples

The Python that runs it is the one whose torch is built against. Environment: TORCHQUANT_BUILD_DIR (default: build),
TORCHQUANT_CUDA (AUTO, ON, OFF), TORCHQUANT_CUDA_ARCHITECTURES, TORCHQUANT_DEV (ON, OFF), CMAKE_ARGS. Choices stay until others are made.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE_DIR = Path(__file__).resolve().parent.parent
PACKAGE_DIR = SOURCE_DIR / "torchquant"


def build_dir() -> Path:
    return Path(os.environ.get("TORCHQUANT_BUILD_DIR", SOURCE_DIR / "build")).resolve()


def jobs() -> str:
    return os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(len(os.sched_getaffinity(0)))


def tool(name: str) -> str:
    """The tool that pip put beside this Python, or the one on PATH."""
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=search)
    if found is None:
        raise SystemExit(f"{name} was not found: run '{sys.executable} -m pip install {name}'")
    return found


def _run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True)


def torch_distribution() -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution("torch")
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(
            f"{sys.executable} has no torch to build against. Install it (requirements.txt pins the version that TorchQuant is "
            "developed with), and build without isolation: pip install --no-build-isolation ."
        ) from None


def _identity() -> dict[str, str]:
    """What a CMake cache must not outlive: find_package keeps the first torch and the first toolkit that it saw."""
    torch = torch_distribution()
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    try:
        nvcc_version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    except OSError:
        nvcc_version = ""
    return {
        "python": sys.executable,
        "torch": f"{torch.version} {torch.locate_file('')}",
        "nvcc": nvcc if nvcc_version else "",
    }


def _options(extra: dict[str, str]) -> dict[str, str]:
    # A variable that is not set leaves what an earlier call chose: `make build` after `TORCHQUANT_DEV=ON make test` rebuilds nothing.
    chosen = {name: os.environ[name] for name in ("TORCHQUANT_CUDA", "TORCHQUANT_CUDA_ARCHITECTURES", "TORCHQUANT_DEV") if name in os.environ}
    return {"Python3_EXECUTABLE": sys.executable, "CMAKE_INSTALL_PREFIX": str(PACKAGE_DIR)} | chosen | extra


def configure(extra: dict[str, str]) -> None:
    """Runs CMake if it has not run with these options yet. Ninja itself runs it again when a file of CMake changes."""
    directory = build_dir()
    stamp = directory / "configured.json"
    wanted = {"identity": _identity(), "arguments": os.environ.get("CMAKE_ARGS", ""), "options": _options(extra)}
    known = json.loads(stamp.read_text()) if stamp.exists() and (directory / "build.ninja").exists() else {}
    same_cache = known.get("identity") == wanted["identity"] and known.get("arguments") == wanted["arguments"]
    if same_cache and known["options"].items() >= wanted["options"].items():
        return
    stamp.unlink(missing_ok=True)
    definitions = [f"-D{name}={value}" for name, value in wanted["options"].items()]
    fresh = [] if same_cache else ["--fresh"]
    _run(tool("cmake"), "-S", SOURCE_DIR, "-B", directory, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
         *fresh, *definitions, *shlex.split(wanted["arguments"]))
    if same_cache:  # options of earlier calls stay in the cache: `make build` does not undeclare the tests
        wanted["options"] = known["options"] | wanted["options"]
    stamp.write_text(json.dumps(wanted, indent=2))


def build(*targets: str) -> None:
    _run(tool("cmake"), "--build", build_dir(), "--parallel", jobs(), "--target", *targets)


def install(prefix: Path) -> None:
    """Builds the library and the extension and places them, the headers and the CMake package under `prefix`."""
    configure({})
    build("all")
    _run(tool("cmake"), "--install", build_dir(), "--prefix", prefix)


def build_examples() -> None:
    """Builds each C++ example as a user does: a project of its own that finds the installed TorchQuant."""
    for example in sorted(path.parent for path in (SOURCE_DIR / "cpp_examples").glob("*/CMakeLists.txt")):
        directory = build_dir() / "cpp_examples" / example.name
        if not (directory / "build.ninja").exists():
            _run(tool("cmake"), "-S", example, "-B", directory, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
                 "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_PREFIX_PATH={PACKAGE_DIR / 'share' / 'cmake'}")
        _run(tool("cmake"), "--build", directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["build", "tests", "benchmarks", "examples"])
    what = parser.parse_args().what
    try:
        if what in ("tests", "benchmarks"):
            configure({f"TORCHQUANT_{what.upper()}": "ON"})
            build(what)
        elif what == "examples":
            build_examples()
        else:
            install(PACKAGE_DIR)
    except subprocess.CalledProcessError as error:  # CMake has said what is wrong
        raise SystemExit(error.returncode) from None


if __name__ == "__main__":
    main()
