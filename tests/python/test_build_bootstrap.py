"""scripts/bootstrap.py: what it says where it may not install, and that a prepared machine costs nothing."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BOOTSTRAP = ROOT / "scripts" / "bootstrap.py"

_spec = importlib.util.spec_from_file_location("bootstrap", BOOTSTRAP)
bootstrap = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bootstrap)


@pytest.fixture
def no_apt(monkeypatch):
    """A user without sudo on a machine without GoogleTest."""
    monkeypatch.setattr(bootstrap.os, "geteuid", lambda: 1000)
    which = bootstrap.shutil.which
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: None if name == "sudo" else which(name))
    monkeypatch.setattr(bootstrap, "compiler_sees", lambda header: False)


def test_prints_the_exact_apt_line_where_it_may_not_install(no_apt):
    with pytest.raises(SystemExit, match=r"\n  sudo apt-get install -y libgtest-dev libgmock-dev$"):
        bootstrap.install_system_packages("test", sys.executable, needs_venv=False)


def test_asks_only_for_what_the_target_needs(no_apt):
    bootstrap.install_system_packages("build", sys.executable, needs_venv=False)
    assert "libbenchmark-dev" in bootstrap.missing_system_packages("bench", sys.executable, needs_venv=False)


def test_a_program_that_tests_can_do_without_is_named_and_is_no_error(no_apt, monkeypatch, capsys):
    monkeypatch.setattr(bootstrap, "compiler_sees", lambda header: True)
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: None if "chrom" in name or name == "sudo" else f"/usr/bin/{name}")
    bootstrap.install_system_packages("test", sys.executable, needs_venv=False)
    assert capsys.readouterr().out == "Without chromium some tests will be skipped: sudo apt-get install -y chromium\n"
    bootstrap.install_system_packages("build", sys.executable, needs_venv=False)
    assert capsys.readouterr().out == ""


def test_an_optional_program_is_installed_apart_from_the_others(monkeypatch):
    commands = []
    monkeypatch.setattr(bootstrap.os, "geteuid", lambda: 0)
    monkeypatch.setattr(bootstrap.subprocess, "run", lambda command, **_: commands.append(command))
    wanted = iter([["libgtest-dev"], []])
    monkeypatch.setattr(bootstrap, "missing_system_packages", lambda *_, **__: next(wanted))
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: None if "chrom" in name else f"/usr/bin/{name}")
    bootstrap.install_system_packages("test", sys.executable, needs_venv=False)
    assert [command[-1] for command in commands] == ["update", "libgtest-dev", "chromium"]


def test_a_missing_compiler_is_asked_for_first(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert bootstrap.missing_system_packages("test", sys.executable, needs_venv=True) == ["g++"]


def test_the_compiler_is_asked_for_headers():
    assert bootstrap.compiler_sees("vector")
    assert not bootstrap.compiler_sees("no/such/header.h")


def test_a_given_environment_without_torch_is_named_and_left_alone(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    python = tmp_path / "bin" / "python"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as error:
        bootstrap.check_environment(str(python))
    message = str(error.value)
    assert message.startswith(f"TORCHQUANT_PYTHON={python} lacks torch, torchvision, ")
    assert f"\n  {python} -m pip install torch==" in message and "rich==" in message
    assert sorted(tmp_path.rglob("*")) == before


def test_a_given_environment_may_lack_what_only_some_tests_use(monkeypatch):
    def answer(modules):
        done = subprocess.CompletedProcess([], 0, stdout=" ".join(modules), stderr="")
        monkeypatch.setattr(bootstrap.subprocess, "run", lambda *_, **__: done)

    answer(["torchvision"])
    bootstrap.check_environment("python")
    answer(["torchvision", "hypothesis"])
    with pytest.raises(SystemExit, match="lacks torchvision, hypothesis"):
        bootstrap.check_environment("python")


def test_every_requirement_is_pinned():
    assert all("==" in requirement for requirement in bootstrap.requirements())
