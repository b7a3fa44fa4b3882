"""Every test that docs/numerics.md names exists, so that no rule of the contract loses its test unnoticed."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DECLARATION = re.compile(r"\b(?:TYPED_)?TEST(?:_F|_P)?\(\s*(\w+)\s*,\s*(\w+)\s*\)")


def named_tests() -> set[str]:
    text = (ROOT / "docs" / "numerics.md").read_text()
    return set(re.findall(r"`([A-Z]\w*\.[A-Z]\w*)`", text)) - {"Suite.Test"}


def declared_tests() -> set[str]:
    sources = (ROOT / "tests" / "cpp").rglob("*_test.cpp")
    return {f"{suite}.{name}" for source in sources for suite, name in DECLARATION.findall(source.read_text())}


def test_every_named_test_exists():
    assert named_tests(), "docs/numerics.md names no test"
    assert named_tests() <= declared_tests(), f"missing: {sorted(named_tests() - declared_tests())}"
