"""What both ways of placing fake-quants share: how each layer is to run, one fake-quant per weight, and the report of
all decisions."""

import warnings
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from ..fake_quantize import FakeQuantize
from ..qconfig import QuantSpec, as_mapping
from .patterns import ComputeLayer
from .quantized_parameter import add_weight_fake_quant

RECOMPUTED_BY_HOOK = (
    "a plain tensor that a hook recomputes: after torch.nn.utils.prune call torchquant.training.keep_zeros first; instead of "
    "torch.nn.utils.weight_norm or spectral_norm use torch.nn.utils.parametrizations"
)


@dataclass(frozen=True)
class LayerSettings:
    """How one layer is to run. `activation` is None where it reads its input in float."""

    mode: str
    activation: QuantSpec | None
    weight: QuantSpec


@dataclass
class Report:
    """What prepare decided, a dict per layer, weight or tensor: "name", "role" ("layer", "weight" or "activation"),
    "fake_quant" (its path in the prepared model, None for what stays float) and "reason"."""

    graph: str  # "torch.fx", or why the model was prepared module by module
    rows: list[dict] = field(default_factory=list)

    def add(self, name, role, fake_quant, reason):
        row = {"name": name, "role": role, "fake_quant": fake_quant, "reason": reason}
        if row not in self.rows:
            self.rows.append(row)

    def __str__(self):
        width = max((len(row["name"]) for row in self.rows), default=0)
        lines = (
            f"{row['name']:<{width}}  {row['role']:<10}  {row['fake_quant'] or 'float'}: {row['reason']}" for row in self.rows
        )
        return "\n".join((f"placement: {self.graph}", *lines))


class Placement:
    """The prepared model while its fake-quants are being placed."""

    def __init__(self, model, qconfig, training):
        self.model, self.training = model, training
        self.qconfigs = as_mapping(qconfig).resolve(model, training=training)  # path -> QConfig or None
        self._products = as_mapping(qconfig).resolve_object_type("matmul", model, training=training)  # likewise
        self._quantized_products = False
        self.report = Report("torch.fx")
        self.float_layers = {}  # layer -> (kind, reason, whether the QConfig asks to quantize it)
        self._settings = {}
        self._weights = {}  # id of a parameter -> (its fake-quant, the path that got it first)

    def wants_activations(self):
        qconfigs = (*self.qconfigs.values(), *self._products.values())
        return any(qconfig is not None and qconfig.activation is not None for qconfig in qconfigs)

    def wants_products(self):
        return any(qconfig is not None for qconfig in self._products.values())

    def product_spec(self, path):
        """What products of two activations in the forward of the module at `path` read both as, None for float."""
        qconfig = self._products.get(path)
        return qconfig and qconfig.activation

    def quantize_product(self):
        self._quantized_products = True

    def check_products(self):
        """Warns where products were asked for and none was found, as set_module_type does."""
        if self.wants_products() and not self._quantized_products:
            warnings.warn(
                'prepare: set_object_type("matmul", ...) found no product of two activations; scaled_dot_product_attention is none '
                '(models from transformers write it out with attn_implementation="eager")',
                stacklevel=5,
            )

    def keep_float(self, path, layer: ComputeLayer, reason, name=None):
        """Notes a layer without an integer kernel that the module at `path` runs, for the report and the converter's receipt."""
        asked = self._mode(path, layer)
        requested = asked in layer.modes
        self._note_float(path or name or "", layer.kind, reason if requested else self._why_not_asked(asked, layer), requested)

    def _note_float(self, name, kind, reason, requested):
        self.report.add(name, "layer", None, reason)
        if requested or not self.float_layers.get(name, (None, None, False))[2]:
            self.float_layers[name] = (kind, reason, requested)

    def settings(self, path, layer: ComputeLayer):
        """How the layer whose weight belongs to the module at `path` is to run; None for one that stays float."""
        if (path, layer.kind) not in self._settings:
            settings = self._decide(path, layer)
            if isinstance(settings, str):
                self._note_float(path, layer.kind, settings, requested=False)
                settings = None
            self._settings[path, layer.kind] = settings
        return self._settings[path, layer.kind]

    def _decide(self, path, layer):
        mode = self._mode(path, layer)
        if mode not in layer.modes:
            return self._why_not_asked(mode, layer)
        qconfig = self.qconfigs[path]
        return LayerSettings(mode, None if mode == "weight_only" else qconfig.activation, qconfig.weight)

    def _mode(self, path, layer):
        """How the QConfig of the module at `path` asks to run a layer, None for float."""
        qconfig = self.qconfigs.get(path)
        if qconfig is None:
            return None
        if qconfig.weight.float8:
            return "fp8"
        if qconfig.activation is None or layer.modes == {"weight_only"}:  # an index is no activation
            return "weight_only"
        return "dynamic" if qconfig.activation.dynamic else "static"

    def _why_not_asked(self, mode, layer):
        if mode is None:
            return "the QConfig keeps it float"
        if mode == "fp8":
            return f"an fp8 QConfig quantizes linear layers, no {layer.kind}"
        return f"a {mode.replace('_', '-')} QConfig quantizes linear and recurrent layers and embeddings, no {layer.kind}"

    def quantize_weight(self, path, parameter, layer: ComputeLayer, settings: LayerSettings):
        """Gives a parameter its fake-quant and makes it read as the fake-quantized value. A parameter that has two
        owners gets one."""
        owner = self.model.get_submodule(path)
        name = f"{path}.{parameter}" if path else parameter
        if isinstance(owner, nn.Embedding):
            self._check_embedding(owner, path)
        fake_quant = self.weight_fake_quant(owner, name, parameter, layer, settings)
        if f"{parameter}_fake_quant" not in owner._modules:
            add_weight_fake_quant(owner, parameter, fake_quant)

    def _check_embedding(self, embedding, path):
        for setting, wrong in (("max_norm", embedding.max_norm is not None), ("sparse", embedding.sparse and self.training)):
            if wrong:
                raise ValueError(
                    f"prepare: {path or 'the model'}: an Embedding with {setting} cannot read fake-quantized weights; "
                    "keep it float with QConfigMapping.set_module_name"
                )

    def weight_fake_quant(self, owner, name, parameter, layer, settings):
        """The fake-quant of a parameter, which has seen its values already: weights need no calibration data."""
        if parameter in vars(owner):
            raise ValueError(f"prepare: {name} is {RECOMPUTED_BY_HOOK}")
        weight = getattr(owner, parameter)
        key = id(owner._parameters.get(parameter, weight))
        spec = _weight_spec(settings.weight, layer, name, weight)
        fake_quant, first = self._weights.get(key, (None, None))
        if fake_quant is None:
            fake_quant = FakeQuantize(spec, of_parameter=True)
            fake_quant.to(weight.device)
            fake_quant.enable_observer(True)
            fake_quant.enable_fake_quant(False)
            with torch.no_grad():
                fake_quant(weight)
            fake_quant.update_qparams()
            self._weights[key] = fake_quant, name
        elif fake_quant.spec != spec:
            raise ValueError(
                f"prepare: {first} and {name} are one parameter, so they need one QConfig; got {fake_quant.spec} and {spec}"
            )
        shared = f", shared with {first}" if first and first != name else ""
        self.report.add(name, "weight", f"{name}_fake_quant", f"weight of {layer.kind}, {settings.mode}{shared}")
        return fake_quant

    def new_activation(self, spec):
        fake_quant = FakeQuantize(spec)
        fake_quant.to(next((parameter.device for parameter in self.model.parameters()), torch.device("cpu")))
        return fake_quant

    def quantizes_anything(self):
        return bool(self._weights) or self._quantized_products


def _weight_spec(spec, layer, name, weight):
    if spec.group_size is not None:
        if "weight_only" not in layer.modes:
            raise ValueError(f"prepare: {name}: {layer.kind} has no kernel for groups of weights; give it per-channel weights")
        inputs = weight.size(layer.input_axis)
        if inputs % spec.group_size:
            raise ValueError(
                f"prepare: {name}: group_size={spec.group_size} does not divide its number of inputs, {inputs}; "
                "choose another group_size or keep the layer float with QConfigMapping.set_module_name(..., None)"
            )
        return spec if layer.input_axis == -1 else replace(spec, axis=layer.input_axis)
    # per channel means the output channels, whose axis depends on the layer
    return spec if spec.axis is None else replace(spec, axis=layer.weight_axis)


class PreparedModel(nn.Module):
    """What a model that prepare made is an instance of, beside the user's class."""

    torchquant_process_group = None  # the processes that train it, once it is sharded


def check_prepared(caller, model, maker="prepare"):
    """Refuses what is no prepared model; `maker` names the functions whose result `caller` takes."""
    if not isinstance(model, PreparedModel):
        raise TypeError(f"{caller}: expected a model that torchquant.{maker} returned, got {type(model).__name__}")
