"""What to quantize and how: QuantSpec (one tensor), QConfig (one layer) and QConfigMapping (one model)."""

from __future__ import annotations

import copy
import json
import operator
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import nn

from torchquant.errors import nearest
from torchquant.files import write_text

OBSERVERS = ("auto", "min_max", "moving_average", "percentile", "mse", "entropy")
HISTOGRAM_OBSERVERS = ("percentile", "mse", "entropy")
ROUNDINGS = ("nearest", "stochastic", "noise")
FLOAT8 = {"e4m3fn": (torch.float8_e4m3fn, 448), "e5m2": (torch.float8_e5m2, 57344)}  # dtype and largest value of each

# Operations without weights that are quantized where a QConfigMapping asks for them by name: kind, as receipts say it -> the
# functions that it stands for.
OBJECT_TYPES = {"matmul": (torch.matmul, torch.bmm, torch.mm, operator.matmul)}

_FLAGS = ("symmetric", "dynamic", "learnable", "learnable_zero_point", "learnable_clip", "power_of_two", "delayed")  # of a QuantSpec

FILE_VERSION = 1  # of a saved QConfigMapping


def _check(condition: bool, owner: str, argument: str, allowed: str, got) -> None:
    if not condition:
        raise ValueError(f"{owner}: {argument} must be {allowed}, got {got!r}")


def _check_bits(owner: str, bits: int) -> None:
    _check(isinstance(bits, int) and 2 <= bits <= 8, owner, "bits", "an integer from 2 to 8", bits)


@dataclass(frozen=True)
class QuantSpec:
    """How one tensor is quantized: the codes, what shares a scale, and where scales come from.

    `QuantSpec.activation(bits)` and `QuantSpec.weight(bits)` give the usual ones; `dataclasses.replace` varies them.
    """

    quant_min: int
    quant_max: int
    symmetric: bool
    # None: one scale for the tensor. axis: one per index of that axis; with group_size: one per group along it.
    axis: int | None = None
    group_size: int | None = None
    # The scale of every row (of the last axis) is taken from the row itself, in each forward.
    dynamic: bool = False
    # "auto" is "mse" after `prepare` and "moving_average" after `prepare_qat`.
    observer: str = "auto"
    averaging_constant: float = 0.01  # moving_average: weight of the newest batch; 1 keeps that batch alone
    percentile: float = 99.99  # percentile: cuts (100 - percentile) % of the values off each tail
    bins: int = 4096  # histogram observers
    learnable: bool = False  # the scale is a parameter, trained as in LSQ
    learnable_zero_point: bool = False  # the zero point as well, as in LSQ+
    learnable_clip: bool = False  # the value at which the range ends is a parameter, trained as in PACT
    power_of_two: bool = False  # scales are powers of two, rounded up so that the range stays whole
    # How training mode rounds: "stochastic" up or down with the probability that makes the expectation right, "noise" not at
    # all but adds noise as large as the rounding error. Evaluation and converted models round to the nearest.
    rounding: str = "nearest"
    # "e4m3fn" or "e5m2": 8-bit floats in place of integers, whose largest value quant_max then is. Always dynamic, weights too:
    # their scales follow from the values they have.
    float8: str | None = None
    # A training step quantizes with the range of the steps before it: one pass over the tensor, which an exact range costs two.
    # (The processes of a DistributedDataParallel always do.)
    delayed: bool = False

    def __post_init__(self):
        for flag in _FLAGS:
            _check(isinstance(getattr(self, flag), bool), "QuantSpec", flag, "True or False", getattr(self, flag))
        codes = (self.quant_min, self.quant_max)
        if self.float8 is not None:
            self._check_float8(codes)
        in_a_byte = -128 <= self.quant_min < self.quant_max <= 127 or 0 <= self.quant_min < self.quant_max <= 255
        allowed = "increasing and inside [-128, 127] or [0, 255]"
        _check(in_a_byte or self.float8 is not None, "QuantSpec", "[quant_min, quant_max]", allowed, codes)
        _check(self.observer in OBSERVERS, "QuantSpec", "observer", f"one of {', '.join(OBSERVERS)}", self.observer)
        _check(0 < self.averaging_constant <= 1, "QuantSpec", "averaging_constant", "in (0, 1]", self.averaging_constant)
        _check(50 < self.percentile <= 100, "QuantSpec", "percentile", "in (50, 100]", self.percentile)
        _check(16 <= self.bins <= 1 << 20, "QuantSpec", "bins", "from 16 to 1048576", self.bins)
        if self.group_size is not None:
            _check(self.axis is not None, "QuantSpec", "axis", "given when group_size is", self.axis)
            whole = isinstance(self.group_size, int) and self.group_size > 0
            _check(whole, "QuantSpec", "group_size", "a positive integer", self.group_size)
            allowed = "auto, min_max or moving_average when group_size is given"
            _check(self.observer not in HISTOGRAM_OBSERVERS, "QuantSpec", "observer", allowed, self.observer)
        _check(self.rounding in ROUNDINGS, "QuantSpec", "rounding", f"one of {', '.join(ROUNDINGS)}", self.rounding)
        self._check_learning()
        if self.delayed:
            self._check_delayed()
        if self.dynamic:
            per_row = self.axis == -1 or self.float8 is not None and self.axis in (0, 1)  # of a weight: the output channels
            _check(per_row, "QuantSpec", "axis", "-1 (one scale per row) when dynamic", self.axis)
            for flag in ("learnable", "learnable_clip", "power_of_two"):
                _check(not getattr(self, flag), "QuantSpec", flag, "False when dynamic", getattr(self, flag))
            _check(self.rounding == "nearest", "QuantSpec", "rounding", "nearest when dynamic", self.rounding)

    def _check_float8(self, codes: tuple[int, int]) -> None:
        _check(self.float8 in FLOAT8, "QuantSpec", "float8", f"None or one of {', '.join(FLOAT8)}", self.float8)
        largest = FLOAT8[self.float8][1]
        _check(codes == (-largest, largest), "QuantSpec", "[quant_min, quant_max]", f"[-{largest}, {largest}] for {self.float8}", codes)
        for flag in ("dynamic", "symmetric"):
            _check(getattr(self, flag), "QuantSpec", flag, "True when float8 is given", getattr(self, flag))
        _check(self.group_size is None, "QuantSpec", "group_size", "None when float8 is given", self.group_size)

    def _check_learning(self) -> None:
        learned_alone = self.learnable_zero_point and not self.learnable
        _check(not learned_alone, "QuantSpec", "learnable", "True when learnable_zero_point is", self.learnable)
        if self.learnable_clip:
            _check(not self.learnable, "QuantSpec", "learnable", "False when learnable_clip is given", self.learnable)
            _check(self.axis is None, "QuantSpec", "axis", "None (one scale for the tensor) when learnable_clip is given", self.axis)
        if self.learns:
            _check(not self.power_of_two, "QuantSpec", "power_of_two", "False where the scale or clipping value is learned", True)
            allowed = "nearest where the scale or clipping value is learned"
            _check(self.rounding == "nearest", "QuantSpec", "rounding", allowed, self.rounding)

    def _check_delayed(self) -> None:
        _check(self.axis is None, "QuantSpec", "axis", "None (one scale for the tensor) when delayed", self.axis)
        _check(self.observer in ("auto", "moving_average"), "QuantSpec", "observer", "auto or moving_average when delayed", self.observer)
        _check(not self.learns, "QuantSpec", "delayed", "False where the scale or clipping value is learned", True)
        _check(not self.power_of_two, "QuantSpec", "power_of_two", "False when delayed", True)
        _check(self.rounding == "nearest", "QuantSpec", "rounding", "nearest when delayed", self.rounding)

    @classmethod
    def activation(cls, bits: int = 8, **changes) -> QuantSpec:
        """Unsigned codes [0, 2^bits - 1], affine, one scale for the tensor."""
        _check_bits("QuantSpec.activation", bits)
        return cls(**{"quant_min": 0, "quant_max": 2**bits - 1, "symmetric": False, **changes})

    @classmethod
    def weight(cls, bits: int = 8, **changes) -> QuantSpec:
        """Signed codes [-(2^(bits-1) - 1), 2^(bits-1) - 1], symmetric, one scale per output channel (axis 0).

        A weight is seen whole in every step, so its range is that of the newest step alone.
        """
        _check_bits("QuantSpec.weight", bits)
        largest = 2 ** (bits - 1) - 1
        values = {"quant_min": -largest, "quant_max": largest, "symmetric": True, "axis": 0}
        return cls(**{**values, "observer": "moving_average", "averaging_constant": 1.0, **changes})

    @classmethod
    def per_row(cls, bits: int = 8) -> QuantSpec:
        """Dynamic activations: symmetric, one scale per row, taken from the row when it is used."""
        return cls.weight(bits, axis=-1, dynamic=True, observer="auto")

    @classmethod
    def fp8(cls, dtype: torch.dtype = torch.float8_e4m3fn) -> QuantSpec:
        """8-bit floats, one scale per row (of a weight: per output channel), taken from the row when it is used. `dtype` is
        torch.float8_e4m3fn or torch.float8_e5m2."""
        formats = {known: (name, largest) for name, (known, largest) in FLOAT8.items()}
        _check(dtype in formats, "QuantSpec.fp8", "dtype", " or ".join(map(str, formats)), dtype)
        name, largest = formats[dtype]
        return cls(-largest, largest, True, axis=-1, dynamic=True, float8=name)

    @property
    def learns(self) -> bool:
        """Whether training moves the range by gradients instead of observing it."""
        return self.learnable or self.learnable_clip

    @property
    def bits(self) -> int:
        return 8 if self.float8 else (self.quant_max - self.quant_min).bit_length()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that holds the codes in memory."""
        if self.float8:
            return FLOAT8[self.float8][0]
        return torch.uint8 if self.quant_min >= 0 else torch.int8

    def with_observer_for(self, *, training: bool) -> QuantSpec:
        """Decides "auto" after field practice: a search over histograms calibrates best, a moving average costs a
        training step least."""
        if self.observer != "auto":
            return self
        averages = training or self.delayed or self.group_size is not None
        return replace(self, observer="moving_average" if averages else "mse")

    def to_dict(self) -> dict:
        """Plain values, for YAML and JSON; `from_dict` reads them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping) -> QuantSpec:
        _check_keys("QuantSpec", values, {f.name for f in fields(cls)}, {"quant_min", "quant_max", "symmetric"})
        return cls(**values)


@dataclass(frozen=True)
class QConfig:
    """How one layer is quantized. Without `activation` only its weight is. `torchquant.qconfigs` has the usual ones."""

    weight: QuantSpec
    activation: QuantSpec | None = None

    def __post_init__(self):
        for name, allowed in (("weight", QuantSpec), ("activation", (QuantSpec, type(None)))):
            if not isinstance(getattr(self, name), allowed):
                raise TypeError(f"QConfig: {name} must be a QuantSpec, got {getattr(self, name)!r}")
        if self.activation is not None and not self.activation.dynamic:
            _check(self.activation.axis is None, "QConfig", "activation.axis", "None (one scale for the tensor) unless dynamic", self.activation.axis)
        formats = self.weight.float8, self.activation and self.activation.float8
        _check(bool(formats[0]) == bool(formats[1]), "QConfig", "activation", "fp8 where the weight is, and nowhere else", self.activation)
        _check(formats != ("e5m2", "e5m2"), "QConfig", "activation", "e4m3fn for e5m2 weights (GPUs multiply no two e5m2)", formats[1])

    def with_observers_for(self, *, training: bool) -> QConfig:
        activation = self.activation and self.activation.with_observer_for(training=training)
        return QConfig(self.weight.with_observer_for(training=training), activation)

    def to_dict(self) -> dict:
        return {"weight": self.weight.to_dict(), "activation": self.activation and self.activation.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping) -> QConfig:
        _check_keys("QConfig", values, {"weight", "activation"}, {"weight"})
        activation = values.get("activation")
        return cls(QuantSpec.from_dict(values["weight"]), activation and QuantSpec.from_dict(activation))


def _check_keys(owner: str, values: Mapping, allowed: set[str], required: set[str]) -> None:
    if not isinstance(values, Mapping):
        raise TypeError(f"{owner}.from_dict: expected a dict, got {values!r}")
    if unknown := sorted(set(values) - allowed):
        meant = nearest(str(unknown[0]), sorted(allowed))
        raise ValueError(f"{owner}.from_dict: unknown key {unknown[0]!r}; allowed: {', '.join(sorted(allowed))}; nearest: {meant}")
    if missing := sorted(required - set(values)):
        raise ValueError(f"{owner}.from_dict: key {missing[0]!r} is missing")


def _check_qconfig(owner: str, qconfig) -> None:
    if qconfig is not None and not isinstance(qconfig, QConfig):
        raise TypeError(
            f"{owner}: expected a QConfig (such as torchquant.qconfigs.int8_static()) or None, got {qconfig!r}"
        )


def _class_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _find_class(name: str) -> type:
    """The class that a dotted name means, among what is imported already: a configuration file imports nothing."""
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        found = sys.modules.get(".".join(parts[:split]))
        for part in parts[split:] if found else ():
            found = getattr(found, part, None)
        if isinstance(found, type):
            return found
    raise ValueError(f"QConfigMapping: there is no imported class {name!r}; import its module first, or mend the name")


@dataclass
class QConfigMapping:
    """Which QConfig each module of a model has.

        QConfigMapping(qconfigs.int8_static())
            .set_module_type(nn.Linear, qconfigs.int8_dynamic())
            .set_module_name(r"encoder\\.layer\\.0", None)
            .set_object_type(torch.matmul, qconfigs.int8_static())

    A name is a regular expression that must match the whole path in `named_modules()`. None keeps a module float. A module
    without an entry of its own takes its parent's. A name beats a type, and a type beats the default; of two names or two
    types that fit, the later wins. A name that fits no module is an error, a type that does a warning. Products of two activations
    are quantized by `set_object_type` alone.
    """

    default: QConfig | None = None
    _types: list[tuple[type, QConfig | None]] = field(default_factory=list, init=False)
    _names: list[tuple[str, QConfig | None]] = field(default_factory=list, init=False)
    _object_types: list[tuple[str, QConfig | None]] = field(default_factory=list, init=False)
    # What chose this mapping and why (torchquant.methods.choose_observers); no part of its value.
    report: object = field(default=None, init=False, compare=False, repr=False)

    def __post_init__(self):
        _check_qconfig("QConfigMapping", self.default)

    def set_module_type(self, cls: type, qconfig: QConfig | None) -> QConfigMapping:
        """Modules of this class or of a subclass."""
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise TypeError(f"QConfigMapping.set_module_type: cls must be a subclass of torch.nn.Module, got {cls!r}")
        _check_qconfig("QConfigMapping.set_module_type", qconfig)
        self._types.append((cls, qconfig))
        return self

    def set_module_name(self, pattern: str, qconfig: QConfig | None) -> QConfigMapping:
        """Modules whose path the regular expression matches from end to end, and everything below them."""
        _check_qconfig("QConfigMapping.set_module_name", qconfig)
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"QConfigMapping.set_module_name: pattern must be a regular expression, got {pattern!r}: {error}"
            ) from None
        self._names.append((pattern, qconfig))
        return self

    def set_object_type(self, object_type: str | Callable, qconfig: QConfig | None) -> QConfigMapping:
        """An operation without weights: "matmul" or torch.matmul, torch.bmm, torch.mm, operator.matmul, all of which stand for the
        product of two activations however it is written. Both operands get fake-quants with `qconfig.activation`, which must have one
        fixed scale. A module that a name keeps float (None) keeps its products float, too.
        """
        kind = next((kind for kind, functions in OBJECT_TYPES.items() if object_type in (kind, *functions)), None)
        if kind is None:
            hint = "; for modules there is set_module_type" if isinstance(object_type, type) else ""
            raise ValueError(
                "QConfigMapping.set_object_type: object_type must be 'matmul', torch.matmul, torch.bmm, torch.mm or operator.matmul, "
                f"got {object_type!r}{hint}"
            )
        _check_qconfig("QConfigMapping.set_object_type", qconfig)
        spec = qconfig and qconfig.activation
        if qconfig is not None and (spec is None or spec.dynamic or spec.axis is not None):
            raise ValueError(
                "QConfigMapping.set_object_type: qconfig must quantize activations with one fixed scale, as "
                f"torchquant.qconfigs.int8_static() does, got activation={spec!r}"
            )
        self._object_types.append((kind, qconfig))
        return self

    def resolve(self, model: nn.Module, *, training: bool = False) -> dict[str, QConfig | None]:
        """Path of every module -> its QConfig, None for what stays float. `training` decides "auto" observers."""
        modules = dict(model.named_modules(remove_duplicate=False))
        self._check_names_fit(modules)
        self._warn_of_types_that_fit_nothing(modules)
        by_name = _inherited(modules, self._names, lambda pattern, path, module: re.fullmatch(pattern, path))
        by_type = _inherited(modules, self._types, lambda cls, path, module: isinstance(module, cls))
        resolved = {path: _first_set(by_name[path], by_type[path], self.default) for path in modules}
        return {path: qconfig and qconfig.with_observers_for(training=training) for path, qconfig in resolved.items()}

    def resolve_object_type(self, kind: str, model: nn.Module, *, training: bool = False) -> dict[str, QConfig | None]:
        """Path of every module -> the QConfig of such operations in its forward, None where they stay float."""
        modules = dict(model.named_modules(remove_duplicate=False))
        given = [qconfig for other, qconfig in self._object_types if other == kind]
        qconfig = given[-1].with_observers_for(training=training) if given and given[-1] else None
        by_name = _inherited(modules, self._names, lambda pattern, path, module: re.fullmatch(pattern, path))
        return {path: None if by_name[path] is None else qconfig for path in modules}

    def _check_names_fit(self, modules: dict[str, nn.Module]) -> None:
        for pattern, _ in self._names:
            if any(re.fullmatch(pattern, path) for path in modules):
                continue
            paths = [path for path in modules if path]
            meant = nearest(pattern.replace("\\", ""), paths) if paths else "none, the model has no submodules"
            raise ValueError(
                f"QConfigMapping: the name {pattern!r} matches no module of {type(modules['']).__name__}; nearest: "
                f"{meant}"
            )

    def _warn_of_types_that_fit_nothing(self, modules: dict[str, nn.Module]) -> None:
        """No error, unlike a name: one mapping serves many models, not all of which have every type of layer."""
        types = {_class_name(type(module)) for module in modules.values()}
        for cls, _ in self._types:
            if not any(isinstance(module, cls) for module in modules.values()):
                warnings.warn(
                    f"QConfigMapping: the type {_class_name(cls)} matches no module of {type(modules['']).__name__}; nearest: "
                    f"{nearest(_class_name(cls), sorted(types))}",
                    stacklevel=2,
                )

    def to_dict(self) -> dict:
        """Plain values, for YAML and JSON; `from_dict` reads them."""
        values = {
            "version": FILE_VERSION,
            "default": self.default and self.default.to_dict(),
            "types": [{"type": _class_name(cls), "qconfig": qconfig and qconfig.to_dict()} for cls, qconfig in self._types],
            "names": [{"name": name, "qconfig": qconfig and qconfig.to_dict()} for name, qconfig in self._names],
        }
        if self._object_types:  # earlier versions read files without them
            values["object_types"] = [
                {"object_type": kind, "qconfig": qconfig and qconfig.to_dict()} for kind, qconfig in self._object_types
            ]
        return values

    @classmethod
    def from_dict(cls, values: Mapping) -> QConfigMapping:
        _check_keys("QConfigMapping", values, {"version", "default", "types", "names", "object_types"}, set())
        version = values.get("version", FILE_VERSION)
        _check(version == FILE_VERSION, "QConfigMapping.from_dict", "version", f"{FILE_VERSION}, which this torchquant reads", version)
        mapping = cls(_qconfig_from(values.get("default")))
        for entry in values.get("types", ()):
            _check_keys("QConfigMapping types", entry, {"type", "qconfig"}, {"type", "qconfig"})
            mapping.set_module_type(_find_class(entry["type"]), _qconfig_from(entry["qconfig"]))
        for entry in values.get("names", ()):
            _check_keys("QConfigMapping names", entry, {"name", "qconfig"}, {"name", "qconfig"})
            mapping.set_module_name(entry["name"], _qconfig_from(entry["qconfig"]))
        for entry in values.get("object_types", ()):
            _check_keys("QConfigMapping object_types", entry, {"object_type", "qconfig"}, {"object_type", "qconfig"})
            mapping.set_object_type(entry["object_type"], _qconfig_from(entry["qconfig"]))
        return mapping

    def save(self, path: str | os.PathLike) -> None:
        """Writes the mapping as YAML (.yaml, .yml) or JSON (.json), by the ending of `path`. `load` gives an equal mapping."""
        if _format_of(path, "save") == "json":
            text = json.dumps(self.to_dict(), indent=2) + "\n"
        else:
            import yaml  # here and below: only who saves or loads a mapping pays for it

            text = yaml.safe_dump(self.to_dict(), sort_keys=False)
        write_text(path, text)

    @classmethod
    def load(cls, path: str | os.PathLike) -> QConfigMapping:
        """Reads what `save` wrote or a person wrote in that form. Module types must be imported already.

        Raises ValueError, naming the file, for one that cannot be parsed, another version, or an unknown field (with the nearest
        names); layer names are checked against a model when the mapping is used.
        """
        import yaml

        try:
            text = Path(path).read_text(encoding="utf-8")
            values = json.loads(text) if _format_of(path, "load") == "json" else yaml.safe_load(text)
        except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"QConfigMapping.load: {os.fspath(path)!r} cannot be parsed: {' '.join(str(error).split())}") from error
        try:
            return cls.from_dict(values)
        except (ValueError, TypeError) as error:
            raise type(error)(f"QConfigMapping.load: {os.fspath(path)!r}: {error}") from error


_UNSET = object()  # None means "keep it float"


def _inherited(modules, entries, fits):
    """Path -> the QConfig of the last entry that fits the module, else its parent's, else _UNSET."""
    found = {}
    for path, module in modules.items():  # parents come before their children
        own = [qconfig for key, qconfig in entries if fits(key, path, module)]
        found[path] = own[-1] if own else found.get(path.rpartition(".")[0] if path else None, _UNSET)
    return found


def _first_set(*candidates):
    return next(candidate for candidate in candidates if candidate is not _UNSET)


def _format_of(path: str | os.PathLike, caller: str) -> str:
    ending = Path(path).suffix.lower()
    allowed = "a name that ends in .yaml, .yml or .json"
    _check(ending in (".yaml", ".yml", ".json"), f"QConfigMapping.{caller}", "path", allowed, os.fspath(path))
    return "json" if ending == ".json" else "yaml"


def _qconfig_from(values: Mapping | None) -> QConfig | None:
    return None if values is None else QConfig.from_dict(values)


def as_mapping(qconfig: QConfig | QConfigMapping) -> QConfigMapping:
    """A QConfig stands for a mapping that gives it to every layer."""
    if isinstance(qconfig, QConfigMapping):
        return qconfig
    if not isinstance(qconfig, QConfig):
        raise TypeError(
            "qconfig must be a QConfig (such as torchquant.qconfigs.int8_static()) or a QConfigMapping, got "
            f"{qconfig!r}"
        )
    return QConfigMapping(qconfig)


def exactly(path: str) -> str:
    """The name for `set_module_name` that matches this path alone."""
    return re.escape(path)


def with_entries(qconfig: QConfig | QConfigMapping, names: Mapping[str, QConfig | None]) -> QConfigMapping:
    """A mapping that is `qconfig` and, with the last word, these names."""
    mapping = copy.deepcopy(as_mapping(qconfig))
    mapping.report = None
    for name, entry in names.items():
        mapping.set_module_name(name, entry)
    return mapping
