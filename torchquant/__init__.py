"""TorchQuant: quantization for PyTorch. Train with fake-quant, convert to integers in C++, run from Python or C++."""

from pathlib import Path

from torchquant import _load

_load.load()

from torchquant._build_info import VERSION as __version__  # noqa: E402
from torchquant.functional import dequantize, fake_quantize, quantize  # noqa: E402

# For CMake: -DCMAKE_PREFIX_PATH="$(python -c 'import torchquant; print(torchquant.cmake_prefix_path)')"
cmake_prefix_path = str(Path(__file__).resolve().parent / "share" / "cmake")

__all__ = ["__version__", "cmake_prefix_path", "dequantize", "fake_quantize", "quantize"]
