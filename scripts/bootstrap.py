"""Prepares the machine for a make target: system packages through apt, Python packages in .venv. Run by the Makefile first;
does nothing, quickly, where all is there.

    python3 scripts/bootstrap.py build | test | bench | peers

With TORCHQUANT_PYTHON set, that interpreter's environment is checked and nothing is created.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE_DIR = Path(__file__).resolve().parent.parent
VENV = SOURCE_DIR / ".venv"
REQUIREMENTS = SOURCE_DIR / "requirements.txt"
PEER_REQUIREMENTS = SOURCE_DIR / "benchmarks" / "peers" / "requirements.txt"
# Packages whose module has another name.
MODULES = {"scikit-learn": "sklearn", "PyYAML": "yaml", "Jinja2": "jinja2"}
# Packages that are programs: the system's own will do.
TOOLS = {"cmake", "ninja"}
# Packages that only some tests use, which say that they were skipped: not every torch has a torchvision.
OPTIONAL = {"torchvision"}
# Programs that only some tests use, by the name of Debian's package, and the names under which they may be here already.
OPTIONAL_PROGRAMS = {"chromium": ("chromium", "chromium-browser", "google-chrome")}


def compiler_sees(header: str) -> bool:
    probe = f"#if !__has_include(<{header}>)\n#error missing\n#endif\n"
    result = subprocess.run([os.environ.get("CXX", "c++"), "-E", "-x", "c++", "-"], input=probe, text=True, capture_output=True)
    return result.returncode == 0


def python_can(python: str, code: str) -> bool:
    return subprocess.run([python, "-c", code], capture_output=True).returncode == 0


def missing_system_packages(target: str, python: str, needs_venv: bool) -> list[str]:
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        return ["g++"]  # the header probes below need it
    has_python_h = "import os, sysconfig; assert os.path.exists(sysconfig.get_paths()['include'] + '/Python.h')"
    present = {"python3-dev": python_can(python, has_python_h)}
    if needs_venv:
        present["python3-venv"] = python_can(python, "import ensurepip, venv")
    if target in ("test", "bench"):
        present["libgtest-dev"] = compiler_sees("gtest/gtest.h")
        present["libgmock-dev"] = compiler_sees("gmock/gmock.h")
    if target == "bench":
        present["libbenchmark-dev"] = compiler_sees("benchmark/benchmark.h")
    return [package for package, found in present.items() if not found]


def missing_programs(target: str) -> list[str]:
    """Packages of programs that tests can do without."""
    if target != "test":
        return []
    return [package for package, names in OPTIONAL_PROGRAMS.items() if not any(map(shutil.which, names))]


def install_system_packages(target: str, python: str, needs_venv: bool) -> None:
    missing, optional = missing_system_packages(target, python, needs_venv), missing_programs(target)
    if not missing and not optional:
        return
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    allowed = not as_root or (shutil.which("sudo") and subprocess.run([*as_root, "true"], capture_output=True).returncode == 0)
    if shutil.which("apt-get") and allowed:
        print(f"Installing system packages: {' '.join(missing + optional)}", flush=True)
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run([*as_root, "apt-get", "update"], env=environment)
        for packages in filter(None, (missing, optional)):  # apart: an optional one that fails must not keep the others away
            subprocess.run([*as_root, "apt-get", "install", "-y", "--no-install-recommends", *packages], env=environment)
        missing, optional = missing_system_packages(target, python, needs_venv), missing_programs(target)
        if missing == ["python3-dev"] and not needs_venv:
            raise SystemExit(f"Python.h of {python} is missing, and it is not Debian's python3: install its headers.")
    if optional:
        print(f"Without {', '.join(optional)} some tests will be skipped: sudo apt-get install -y {' '.join(optional)}", flush=True)
    if missing:
        raise SystemExit(f"System packages are missing. Run this, then call make again:\n"
                         f"  sudo apt-get install -y {' '.join(missing)}")


def requirements(target: str = "test") -> list[str]:
    files = [REQUIREMENTS, PEER_REQUIREMENTS] if target == "peers" else [REQUIREMENTS]
    lines = (line.split("#")[0].strip() for file in files for line in file.read_text().splitlines())
    return [line for line in lines if line]


def check_environment(python: str, target: str = "test") -> None:
    modules = {requirement: requirement.split("==")[0] for requirement in requirements(target)}
    modules = {requirement: MODULES.get(name, name) for requirement, name in modules.items()}
    code = "import importlib.util as u, sys; print(*[m for m in sys.argv[1:] if u.find_spec(m) is None])"
    result = subprocess.run([python, "-c", code, *modules.values()], text=True, capture_output=True)
    if result.returncode != 0:
        raise SystemExit(f"TORCHQUANT_PYTHON={python} does not run: {result.stderr.strip()}")
    absent = [module for module in result.stdout.split() if module not in TOOLS or shutil.which(module) is None]
    if set(absent) - OPTIONAL:
        # Beside another torch the pinned torchvision would bring its own.
        wanted = " ".join(requirement if "torch" in absent else requirement.split("==")[0]
                          for requirement, module in modules.items() if module in absent)
        raise SystemExit(f"TORCHQUANT_PYTHON={python} lacks {', '.join(absent)}. Run this, then call make again:\n"
                         f"  {python} -m pip install {wanted}")


def install_requirements(file: Path) -> None:
    stamp = VENV / f"{file.parent.name}.{file.name}.sha256"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    print(f"Installing {file.relative_to(SOURCE_DIR)} into {VENV.name}; torch is large, the first time takes minutes", flush=True)
    steps = [] if (VENV / "bin" / "python").exists() else [[sys.executable, "-m", "venv", VENV]]
    steps.append([VENV / "bin" / "python", "-m", "pip", "install", "--disable-pip-version-check", "-r", file])
    for step in steps:
        if subprocess.run(step).returncode != 0:
            raise SystemExit(f"This step failed: {' '.join(map(str, step))}")
    stamp.write_text(digest)


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1] not in ("build", "test", "bench", "peers"):
        raise SystemExit(__doc__)
    given = os.environ.get("TORCHQUANT_PYTHON")
    if sys.version_info < (3, 10):
        raise SystemExit(f"TorchQuant needs Python 3.10 or newer; {sys.executable} is {sys.version.split()[0]}.")
    install_system_packages(sys.argv[1], given or sys.executable, needs_venv=not given)
    if given:
        check_environment(given, sys.argv[1])
        return
    install_requirements(REQUIREMENTS)
    if sys.argv[1] == "peers":
        install_requirements(PEER_REQUIREMENTS)


if __name__ == "__main__":
    main()
