"""The journal of a scan: a file to which each finished evaluation is appended, so that a scan goes on after a kill."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import math
import os
from pathlib import Path

from torchquant.analysis.processes import Processes

FORMAT = 1
_START = b'{"scan": '  # of a journal's first line


class Journal:
    """Lines of JSON: first `{"scan": identity}`, then one entry per line. Each process writes a file of its own and reads all.

    A line is whole or absent: what a kill left of the last one is cut off when the file is opened again. The file is locked
    as long as it is open.
    """

    def __init__(self, path: str | os.PathLike, processes: Processes):
        path = Path(path)
        self.path = path if processes.rank == 0 else path.with_name(f"{path.stem}.rank{processes.rank}{path.suffix}")
        self.siblings = sorted({path, *path.parent.glob(f"{glob.escape(path.stem)}.rank*{glob.escape(path.suffix)}")} - {self.path})
        if not path.parent.is_dir():
            raise ValueError(f"sensitivity_scan: resume='{path}' lies in a folder that does not exist")
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self.file)
            raise RuntimeError(
                f"sensitivity_scan: another process is writing '{self.path}'; wait for it, or give each scan a resume of its own"
            ) from None

    def close(self) -> None:
        os.close(self.file)  # gives the lock back

    def open_for(self, identity: dict) -> list[dict]:
        """The entries of all processes' files, once each is known to be of this very scan; starts an empty file with it."""
        identity = json.loads(json.dumps({"format": FORMAT, **identity}))
        entries = []
        for path in (self.path, *self.siblings):
            header, lines, whole = _read(path)
            if header is not None:
                _check_same(path, header, identity)
                entries += lines
            if path == self.path:
                os.truncate(self.file, whole)
                if header is None:
                    self.append({"scan": identity})
        return entries

    def append(self, entry: dict) -> None:
        os.write(self.file, (json.dumps(entry) + "\n").encode())
        os.fsync(self.file)


def _read(path: Path) -> tuple[dict | None, list[dict], int]:
    """(identity of the scan or None for an empty file, entries, how many bytes are whole lines)."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    lines = []
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        with contextlib.suppress(ValueError):
            lines.append(json.loads(line))
            continue
        raise ValueError(f"sensitivity_scan: line {number} of '{path}' is damaged; delete that line or the file, and scan again")
    header = lines[0].get("scan") if lines and isinstance(lines[0], dict) else None
    if (lines or content) and not isinstance(header, dict):
        if not lines and content[: len(_START)] == _START[: len(content)]:  # killed while it wrote its first line
            return None, [], 0
        raise ValueError(f"sensitivity_scan: '{path}' is not the journal of a scan, so it is left alone; give another resume")
    return header, lines[1:], whole


def _check_same(path: Path, header: dict, identity: dict) -> None:
    differing = [_difference(key, header.get(key), identity.get(key)) for key in sorted({*header, *identity})]
    if differing := [text for text in differing if text]:
        raise ValueError(
            f"sensitivity_scan: '{path}' is the journal of another scan: {'; '.join(differing)}. Give another resume, or delete the file"
        )


def _difference(key: str, before, now) -> str:
    """What differs, in words; empty where nothing does."""
    if same(before, now):
        return ""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [name for name in {**before, **now} if not same(before.get(name), now.get(name))]
        return f"the {key} of {names[0]!r} differs"
    if isinstance(before, (int, float)) and isinstance(now, (int, float)):
        return f"the {key} was {before:.6g} and is {now:.6g}"
    return f"the {key} differs"


def same(before, now) -> bool:
    """Numbers may differ by what another number of threads makes of a sum."""
    if isinstance(before, float) and isinstance(now, float):
        return math.isclose(before, now, rel_tol=1e-4, abs_tol=1e-12)
    if isinstance(before, dict) and isinstance(now, dict):
        return before.keys() == now.keys() and all(same(before[key], now[key]) for key in before)
    if isinstance(before, list) and isinstance(now, list):
        return len(before) == len(now) and all(map(same, before, now))
    return before == now
