"""Every test that docs/numerics.md names exists, so that no rule of the contract loses its test unnoticed."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DECLARATION = re.compile(r"\b(?:TYPED_)?TEST(?:_F|_P)?\(\s*(\w+)\s*,\s*(\w+)\s*\)")


PYTHON_DECLARATION = re.compile(r"^def (test_\w+)\(", re.MULTILINE)


def named_tests() -> set[str]:
    text = (ROOT / "docs" / "numerics.md").read_text()
    return set(re.findall(r"`([A-Z]\w*\.[A-Z]\w*|test_\w+)`", text)) - {"Suite.Test"}


def declared_tests() -> set[str]:
    sources = (ROOT / "tests" / "cpp").rglob("*_test.cpp")
    in_cpp = {f"{suite}.{name}" for source in sources for suite, name in DECLARATION.findall(source.read_text())}
    in_python = (PYTHON_DECLARATION.findall(source.read_text()) for source in (ROOT / "tests" / "python").glob("test_*.py"))
    return in_cpp.union(*in_python)


def test_every_named_test_exists():
    assert named_tests(), "docs/numerics.md names no test"
    assert named_tests() <= declared_tests(), f"missing: {sorted(named_tests() - declared_tests())}"
