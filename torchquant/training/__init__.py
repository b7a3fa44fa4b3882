"""What surrounds quantization-aware training: schedules, distillation, pruned weights, learned ranges, several processes.

The training itself is the user's own loop over a model that `torchquant.prepare_qat` returned.
"""

from torchquant.training.distillation import distillation_loss
from torchquant.training.distributed import synchronize_observers
from torchquant.training.integer_forward import integer_forward
from torchquant.training.parameters import parameter_groups, quantization_parameters
from torchquant.training.schedule import Schedule
from torchquant.training.sparsity import keep_zeros

__all__ = [
    "Schedule",
    "distillation_loss",
    "integer_forward",
    "keep_zeros",
    "parameter_groups",
    "quantization_parameters",
    "synchronize_observers",
]
