"""What a build with nvcc must hold, checked without a GPU: machine code for each architecture and PTX for later ones."""

import pathlib
import struct

import pytest

import torchquant

LIBRARY = pathlib.Path(torchquant.__file__).parent / "lib" / "libtorchquant_cuda.so"
FATBIN_MAGIC = struct.pack("<I", 0xBA55ED50)
PTX, CUBIN = 1, 2

pytestmark = pytest.mark.skipif(not torchquant._build_info.CUDA, reason="built without nvcc")


def fatbin_entries(data):
    """(kind, architecture) of every entry of every fat binary: a 16-byte header, then entries with headers of their own."""
    start = data.find(FATBIN_MAGIC)
    while start >= 0:
        _, _, header_size, size = struct.unpack_from("<IHHQ", data, start)
        offset, end = start + header_size, start + header_size + size
        while offset < end:
            kind, _, entry_header, payload = struct.unpack_from("<HHIQ", data, offset)
            (architecture,) = struct.unpack_from("<I", data, offset + 28)
            yield kind, architecture
            offset += entry_header + payload
        start = data.find(FATBIN_MAGIC, end)


def test_every_fat_binary_holds_both_architectures_and_ptx():
    entries = set(fatbin_entries(LIBRARY.read_bytes()))
    assert {(CUBIN, 80), (CUBIN, 90), (PTX, 80)} <= entries, entries
