"""Prepared models under torch.distributed.fsdp.fully_shard: whose processes they train in, and what cannot be sharded."""

from __future__ import annotations

import sys

import torch
from torch import nn

from ..fake_quantize import FakeQuantize
from .quantized_parameter import recipe_of


def join_sharding_group(prepared: nn.Module, args) -> None:
    """The forward pre-hook of a prepared model: once it is sharded, its fake-quants know the processes that train it."""
    if torch.compiler.is_compiling() or not prepared.training or "torch.distributed.fsdp" not in sys.modules:
        return
    sharded = {path: module for path, module in prepared.named_modules() if isinstance(module, sys.modules["torch.distributed.fsdp"].FSDPModule)}
    groups = (module._get_fsdp_state()._fsdp_param_group for module in sharded.values())
    mesh = next((group.mesh_info.mesh for group in groups if group is not None), None)
    foreign = next((name for name, value in prepared.named_parameters() if getattr(value, "device_mesh", mesh) != mesh), None)
    if foreign:
        raise RuntimeError(
            f"{foreign} is a DTensor that fully_shard did not make (tensor parallelism), and would not be fake-quantized; train with "
            "fully_shard or DistributedDataParallel alone"
        )
    if mesh is None:
        return
    _check(prepared, sharded, mesh)
    prepared.torchquant_process_group = mesh.get_group()
    for module in prepared.modules():
        if isinstance(module, FakeQuantize):
            module.group = prepared.torchquant_process_group


def _check(prepared: nn.Module, sharded: dict[str, nn.Module], mesh) -> None:
    if mesh.ndim > 1:
        raise RuntimeError(
            f"fully_shard: ranges are merged over one dimension of processes, and this mesh has {mesh.ndim}; shard a prepared model over one"
        )
    for path, module in prepared.named_modules():
        if isinstance(module, FakeQuantize) and module.spec.learns:
            raise RuntimeError(
                f"fully_shard: {path} learns its range, and a range cannot be sharded; train with DistributedDataParallel, or take a "
                "QConfig that learns none"
            )
    recipe = recipe_of(prepared)
    for path, module in sharded.items():
        is_layer = not any(isinstance(inner, FakeQuantize) for child in module.children() for inner in list(child.modules())[1:])
        if recipe is not None and recipe.graph is not None and path and not is_layer:
            raise RuntimeError(
                f"fully_shard: the traced graph of a prepared model calls the layers inside {path!r}, and never that itself; shard layers "
                "and the prepared model as a whole"
            )
