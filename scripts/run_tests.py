"""Runs ctest, then pytest, and ends with one summary of both, skipped tests included. Run by `make test`.

    python scripts/run_tests.py [--only-cpp] [pytest arguments]
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from cmake_build import SOURCE_DIR, build_dir, jobs, tool


def run_ctest(report: Path) -> int:
    return subprocess.run([tool("ctest"), "--test-dir", build_dir(), "--output-on-failure", "--no-tests=error",
                           "--parallel", jobs(), "--output-junit", report]).returncode


def run_pytest(report: Path, arguments: list[str]) -> int:
    return subprocess.run([sys.executable, "-m", "pytest", f"--junitxml={report}", *arguments], cwd=SOURCE_DIR).returncode


def count(report: Path) -> str:
    """The totals of a JUnit report: ctest writes one suite as the root, pytest suites under a root."""
    if not report.exists():
        return "did not run"
    root = ElementTree.parse(report).getroot()
    suites = [root] if root.tag == "testsuite" else list(root)
    total = {key: sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")}
    return f"{total['tests']} run, {total['failures'] + total['errors']} failed, {total['skipped']} skipped"


def skipped_in_programs(report: Path) -> list[str]:
    """ctest knows only whole programs; which tests inside them skipped stands in their output."""
    output = "\n".join(element.text or "" for element in ElementTree.parse(report).iter("system-out"))
    return sorted(set(re.findall(r"\[  SKIPPED \] (\S+)", output)))


def main() -> int:
    ctest_report, pytest_report = build_dir() / "ctest.xml", build_dir() / "pytest.xml"
    for report in (ctest_report, pytest_report):
        report.unlink(missing_ok=True)
    only_cpp = sys.argv[1:2] == ["--only-cpp"]
    failed = [run_ctest(ctest_report) != 0, not only_cpp and run_pytest(pytest_report, sys.argv[1:]) != 0]

    print("\nSummary")
    print(f"  C++ programs (ctest): {count(ctest_report)}")
    if not only_cpp:
        print(f"  Python tests (pytest): {count(pytest_report)}")
    if ctest_report.exists():
        for name in skipped_in_programs(ctest_report):
            print(f"  skipped inside a C++ program: {name}")
    print("  FAILED" if any(failed) else "  all passed")
    return int(any(failed))


if __name__ == "__main__":
    sys.exit(main())
