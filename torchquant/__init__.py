"""TorchQuant: quantization for PyTorch. Train with fake-quant, convert to integers in C++, run from Python or C++."""

from pathlib import Path

from torchquant import _load

_load.load()

from torchquant._build_info import VERSION as __version__  # noqa: E402
from torchquant import methods, qconfigs, report  # noqa: E402
from torchquant.fake_quantize import FakeQuantize  # noqa: E402
from torchquant.prepare import float_parameter, freeze_batch_norm, prepare, prepare_qat  # noqa: E402
from torchquant.qconfig import QConfig, QConfigMapping, QuantSpec  # noqa: E402
from torchquant.quantized_model import QuantizedModel, load  # noqa: E402
from torchquant.receipt import Receipt  # noqa: E402
from torchquant.tracing import trace  # noqa: E402

from torchquant import training  # noqa: E402

# Last, so that these names are the functions and not the modules of the same names.
from torchquant.calibrate import calibrate  # noqa: E402 isort: skip
from torchquant.convert import convert, quantize_model  # noqa: E402 isort: skip
from torchquant.analysis.compare import compare  # noqa: E402 isort: skip
from torchquant.analysis.validate import ValidationReport, validate  # noqa: E402 isort: skip
from torchquant.functional import dequantize, fake_quantize, quantize  # noqa: E402 isort: skip
from torchquant.analysis.sensitivity import sensitivity_scan  # noqa: E402 isort: skip
from torchquant.analysis.sensitivity_report import SensitivityReport  # noqa: E402 isort: skip

# For CMake: -DCMAKE_PREFIX_PATH="$(python -c 'import torchquant; print(torchquant.cmake_prefix_path)')"
cmake_prefix_path = str(Path(__file__).resolve().parent / "share" / "cmake")

__all__ = [
    "FakeQuantize",
    "QConfig",
    "QConfigMapping",
    "QuantSpec",
    "QuantizedModel",
    "Receipt",
    "SensitivityReport",
    "ValidationReport",
    "__version__",
    "calibrate",
    "cmake_prefix_path",
    "compare",
    "convert",
    "dequantize",
    "fake_quantize",
    "float_parameter",
    "freeze_batch_norm",
    "load",
    "methods",
    "prepare",
    "prepare_qat",
    "qconfigs",
    "quantize",
    "quantize_model",
    "report",
    "sensitivity_scan",
    "trace",
    "training",
    "validate",
]
