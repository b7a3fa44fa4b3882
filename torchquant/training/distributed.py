"""Calibration on several processes: merges what their observers saw. (In training, prepared models merge by themselves.)"""

from __future__ import annotations

import torch.distributed as dist
from torch import nn

from torchquant.calibrate import named_fake_quants
from torchquant.prepare import check_prepared
from torchquant.process_group import merge_observers


def synchronize_observers(prepared: nn.Module, process_group=None) -> None:
    """Gives every process the activation ranges of all of them: call it in each process, after `calibrate` on its share of
    the data and before training or `convert`.

    Minima, maxima and histograms become those of one pass over all the data; of moving averages every process's has the
    same weight. Ranges that training learns by gradients start anew from what was observed. In training there is no need
    for it: a prepared model inside a DistributedDataParallel merges its ranges after each forward.

    Args:
        prepared: what `prepare` or `prepare_qat` returned, the same in each process; changed in place.
        process_group: of `torch.distributed`; None is the default one.

    Raises:
        RuntimeError: torch.distributed is not initialized, or the processes hold different models.
    """
    check_prepared("synchronize_observers", prepared, "prepare or prepare_qat")
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("synchronize_observers: torch.distributed is not initialized; call torch.distributed.init_process_group first")
    fake_quants = [
        fake_quant
        for fake_quant in named_fake_quants(prepared).values()
        if fake_quant.observer is not None and not fake_quant.of_parameter
    ]
    merge_observers([fake_quant.observer for fake_quant in fake_quants], process_group, "synchronize_observers")
    for fake_quant in fake_quants:
        if fake_quant.fake_quant_enabled and fake_quant.observed:
            fake_quant.update_qparams()
