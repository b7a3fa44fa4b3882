"""The models of a comparison, eager or TorchScript, behind one face: run them and ask what their layers are. Called by compare."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field

import torch
from torch import nn

from torchquant import qconfigs
from torchquant.analysis.layer_values import LayerValues, fake_quants_set, run_layers
from torchquant.analysis.script_values import run_script
from torchquant.prepare import prepare
from torchquant.prepare.quantized_parameter import recipe_of
from torchquant.qconfig import QConfigMapping, exactly
from torchquant.quantized_model import QuantizedModel
from torchquant.trees import tensors_in


@dataclass
class Run:
    """A model that computes in float (``simulate=False``) or as its fake-quants say.

    ``places`` tells whether fake-quants stand in it, ``remarks`` what cannot be compared.
    """

    model: nn.Module
    simulate: bool
    places: bool = True
    remarks: list[str] = field(default_factory=list)

    def __call__(self, args: tuple, kwargs: dict) -> LayerValues:
        if isinstance(self.model, torch.jit.ScriptModule):
            return run_script(self.model, args, kwargs, self.simulate)
        with fake_quants_set(self.model, on=self.simulate):
            return run_layers(self.model, args, kwargs)

    def kind_of(self, path: str) -> str:
        """Class of the module at `path`."""
        module = self._modules[path]
        if isinstance(module, torch.jit.ScriptModule):
            return module.original_name.removeprefix("Prepared")
        recipe = recipe_of(module)
        return (recipe.base if recipe else type(module)).__name__

    @functools.cached_property
    def _modules(self) -> dict[str, nn.Module]:
        return dict(self.model.named_modules())  # a script refuses get_submodule

    @property
    def has_conv1d(self) -> bool:
        return any(self.kind_of(path) in ("Conv1d", "ConvTranspose1d") for path in self._modules)

    def names_of_places(self) -> dict[str, str]:
        """Path of a fake-quant -> what prepare called the tensor that it stands for."""
        report = None if isinstance(self.model, torch.jit.ScriptModule) else getattr(self.model, "torchquant_report", None)
        rows = report.rows if report else ()
        return {row["fake_quant"]: row["name"] for row in rows if row["role"] == "activation" and row["fake_quant"]}


def make_reference(float_model, prepared, converted, batch, args, kwargs) -> Run:
    """The prepared model's structure with the float model's weights and every fake-quant off, if that computes the same; otherwise
    the float model itself, whose values exist at its modules alone."""
    if isinstance(float_model, torch.jit.ScriptModule) and prepared is None:
        return Run(float_model, False, False, ["only the outputs of layers with weights are compared: give the prepared file for the rest"])
    try:
        twin = copy.deepcopy(prepared) if prepared is not None else prepare(float_model, batch, _mapping_of(converted, float_model))
        twin.load_state_dict(float_model.state_dict(), strict=False)
        reference = Run(twin, False)
        if _same(reference(args, kwargs).output, Run(float_model, False)(args, kwargs).output):
            return reference
        remark = "the prepared model with float_model's weights does not compute what float_model computes"
    except (RuntimeError, ValueError, TypeError) as error:
        remark = str(error).strip().splitlines()[0]
    remark = f"only the outputs of modules are compared, because float_model is not the model that was prepared: {remark}"
    return Run(float_model, False, False, [remark])


def _mapping_of(converted: QuantizedModel, float_model: nn.Module) -> QConfigMapping:
    """A QConfigMapping that puts fake-quants where those of the converted model stood."""
    paths = {path for path, _ in float_model.named_modules()}
    mapping = QConfigMapping(qconfigs.int8_static())
    presets = {
        "quantized_linear_dynamic": qconfigs.int8_dynamic(),
        "quantized_linear_weight_only": qconfigs.int8_weight_only(),
        "quantized_linear_fp8": qconfigs.fp8_dynamic(),
    }
    for row in converted.receipt.rows:
        kernel = row["kernel"].split("/")[0]
        if row["layer"] in paths and (not kernel or kernel in presets):
            mapping.set_module_name(exactly(row["layer"]), presets.get(kernel))
    return mapping


def _same(ours, theirs) -> bool:
    """Outputs agree, whatever containers hold them."""
    ours = [tensor for tensor in tensors_in(ours) if tensor.is_floating_point()]
    theirs = [tensor for tensor in tensors_in(theirs) if tensor.is_floating_point()]
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4 * max(1.0, float(b.abs().max())), equal_nan=True)
        for a, b in zip(ours, theirs)
    )
