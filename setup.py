"""Packaging only: CMake (through scripts/cmake_build.py) builds everything and fills the package."""

import re
import shutil
import sys
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

if int(setuptools.__version__.split(".")[0]) < 77:  # older ones fail on pyproject.toml's license, in words that say nothing
    raise SystemExit(f'TorchQuant needs setuptools 77 or newer, this is {setuptools.__version__}: pip install "setuptools>=77"')

SOURCE_DIR = Path(__file__).resolve().parent
sys.path.insert(0, str(SOURCE_DIR / "scripts"))
import cmake_build  # noqa: E402


class CleanBuild(build):
    """Starts from an empty tree, so that a file that left the sources leaves the wheel too."""

    def run(self):
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Installs the CMake tree into the package: the wheel's, or the source tree's own for an editable install."""

    def run(self):
        cmake_build.install(Path(self.get_ext_fullpath("torchquant._C")).resolve().parent)


def version():
    return re.search(r"project\(torchquant VERSION ([\d.]+)", (SOURCE_DIR / "CMakeLists.txt").read_text()).group(1)


def torch_requirement():
    """A library built for one minor version of torch does not load in another."""
    major, minor = cmake_build.torch_distribution().version.split(".")[:2]
    return f"torch=={major}.{minor}.*"


setup(
    version=version(),
    install_requires=[
        torch_requirement(), "numpy>=1.26", "click>=8.1,<9", "rich>=13,<16",
        "scipy>=1.11", "PyYAML>=6", "Jinja2>=3.1", "matplotlib>=3.8",  # the solver, configuration files, reports
    ],
    ext_modules=[Extension("torchquant._C", sources=[])],
    cmdclass={"build": CleanBuild, "build_ext": CMakeBuild},
    options={"build": {"build_base": str(cmake_build.build_dir() / "package")}},
)
