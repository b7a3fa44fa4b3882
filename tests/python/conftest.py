"""Settings of every Python test: fixed seeds and reproducible Hypothesis examples."""

import pytest
import torch

try:
    from hypothesis import settings
except ModuleNotFoundError:  # scripts/gpu_check.sh runs the CUDA tests where there is only torch and pytest
    settings = None

if settings is not None:
    # The same examples on every machine and run, and no deadline: a shared machine may stall for longer than one.
    settings.register_profile("torchquant", deadline=None, derandomize=True, max_examples=60)
    settings.load_profile("torchquant")


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
