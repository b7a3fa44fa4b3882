"""QuantSpec, QConfig and QConfigMapping: which layer gets what, and what a wrong configuration says."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from torchquant import qconfigs
from torchquant.qconfig import QConfig, QConfigMapping, QuantSpec, as_mapping

STATIC = qconfigs.int8_static().with_observers_for(training=False)
DYNAMIC = qconfigs.int8_dynamic().with_observers_for(training=False)
INT4 = qconfigs.int4_weight_static().with_observers_for(training=False)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.fc = nn.Linear(3, 3)


@pytest.fixture
def model():
    return nn.Sequential(Block(), Block(), nn.Linear(3, 3))


# ---- specs and presets


def test_specs_describe_the_codes():
    activation, weight = QuantSpec.activation(), QuantSpec.weight()
    assert (activation.quant_min, activation.quant_max, activation.bits, activation.dtype) == (0, 255, 8, torch.uint8)
    assert (weight.quant_min, weight.quant_max, weight.bits, weight.dtype) == (-127, 127, 8, torch.int8)
    assert (weight.symmetric, weight.axis, activation.symmetric, activation.axis) == (True, 0, False, None)


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width_has_its_codes(bits):
    assert QuantSpec.activation(bits).bits == bits
    assert QuantSpec.weight(bits).bits == bits
    assert QuantSpec.weight(bits).quant_max == 2 ** (bits - 1) - 1


def test_presets():
    assert qconfigs.int8_weight_only().activation is None
    grouped = qconfigs.int4_weight_only(group_size=64).weight
    assert (grouped.quant_min, grouped.quant_max, grouped.axis, grouped.group_size) == (-7, 7, 1, 64)
    assert qconfigs.int4_weight_only(symmetric=False).weight.quant_min == -8
    dynamic = qconfigs.int8_dynamic().activation
    assert (dynamic.dynamic, dynamic.axis, dynamic.symmetric, dynamic.quant_min) == (True, -1, True, -127)
    assert qconfigs.int4_weight_static().weight == QuantSpec.weight(4)
    learned = qconfigs.learned(learn_zero_point=True)
    assert learned.weight.learnable and not learned.weight.learnable_zero_point
    assert learned.activation.learnable and learned.activation.learnable_zero_point


def test_auto_observer_is_a_search_for_calibration_and_an_average_for_training():
    assert qconfigs.int8_static().with_observers_for(training=False).activation.observer == "mse"
    assert qconfigs.int8_static().with_observers_for(training=True).activation.observer == "moving_average"
    assert qconfigs.int8_static(observer="entropy").with_observers_for(training=True).activation.observer == "entropy"


def test_replace_keeps_a_spec_whole():
    spec = dataclasses.replace(QuantSpec.weight(4), axis=1)
    assert (spec.bits, spec.axis) == (4, 1)
    assert hash(spec) == hash(dataclasses.replace(QuantSpec.weight(4), axis=1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantSpec.weight(9), r"QuantSpec.weight: bits must be an integer from 2 to 8, got 9"),
        (lambda: QuantSpec.activation(1), r"QuantSpec.activation: bits must be an integer from 2 to 8, got 1"),
        (lambda: QuantSpec(0, 256, False), r"\[quant_min, quant_max\] must be increasing and inside .*got \(0, 256\)"),
        (lambda: QuantSpec(-1, 128, True), r"inside \[-128, 127\] or \[0, 255\], got \(-1, 128\)"),
        (lambda: QuantSpec.weight(observer="median"), r"observer must be one of auto, .*entropy, got 'median'"),
        (lambda: QuantSpec.weight(axis=None, group_size=32), r"axis must be given when group_size is, got None"),
        (lambda: QuantSpec.weight(group_size=0), r"group_size must be a positive integer, got 0"),
        (lambda: QuantSpec.weight(group_size="a"), r"group_size must be a positive integer, got .a."),
        (lambda: QuantSpec.weight(group_size=32, observer="mse"), r"observer must be auto, min_max or moving_average"),
        (lambda: QuantSpec.activation(averaging_constant=0.0), r"averaging_constant must be in \(0, 1\], got 0.0"),
        (lambda: QuantSpec.activation(percentile=40), r"percentile must be in \(50, 100\], got 40"),
        (lambda: QuantSpec.activation(bins=8), r"bins must be from 16 to 1048576, got 8"),
        (lambda: QuantSpec.activation(dynamic=True), r"axis must be -1 .* when dynamic, got None"),
        (lambda: QuantSpec.activation(learnable_zero_point=True), r"learnable must be True when learnable_zero_point is"),
        (lambda: QuantSpec.weight(delayed=True), r"axis must be None \(one scale for the tensor\) when delayed, got 0"),
        (lambda: QuantSpec.activation(delayed=True, observer="mse"), r"observer must be auto or moving_average when delayed, got 'mse'"),
        (lambda: QuantSpec.activation(delayed=True, learnable=True), r"delayed must be False where the scale or clipping value is learned"),
        (lambda: QuantSpec.activation(delayed=True, power_of_two=True), r"power_of_two must be False when delayed"),
        (lambda: QuantSpec.activation(delayed="False"), r"delayed must be True or False, got 'False'"),
        (lambda: QuantSpec.weight(symmetric="no"), r"symmetric must be True or False, got 'no'"),
        (
            lambda: QConfig(QuantSpec.weight(), QuantSpec.activation(axis=1)),
            r"QConfig: activation.axis must be None \(one scale for the tensor\) unless dynamic, got 1",
        ),
        (lambda: QuantSpec.activation(delayed=True, rounding="noise"), r"rounding must be nearest when delayed, got 'noise'"),
    ],
)
def test_a_wrong_spec_says_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_qconfig_takes_specs_only():
    with pytest.raises(TypeError, match="QConfig: weight must be a QuantSpec, got 8"):
        QConfig(8)
    with pytest.raises(TypeError, match="QConfig: activation must be a QuantSpec, got 'uint8'"):
        QConfig(QuantSpec.weight(), "uint8")


# ---- mapping


def test_default_reaches_every_module(model):
    resolved = QConfigMapping(qconfigs.int8_static()).resolve(model)
    assert set(resolved) == {name for name, _ in model.named_modules()}
    assert set(resolved.values()) == {STATIC}


def test_no_default_keeps_the_model_float(model):
    assert set(QConfigMapping().resolve(model).values()) == {None}


def test_name_beats_type_beats_default(model):
    mapping = QConfigMapping(qconfigs.int8_static())
    mapping.set_module_name(r"1\.fc", qconfigs.int4_weight_static())
    mapping.set_module_type(nn.Linear, qconfigs.int8_dynamic())
    resolved = mapping.resolve(model)
    assert (resolved["0.conv"], resolved["0.fc"], resolved["1.fc"], resolved["2"]) == (STATIC, DYNAMIC, INT4, DYNAMIC)


def test_children_inherit_and_an_own_entry_beats_an_inherited_one(model):
    mapping = QConfigMapping(qconfigs.int8_static())
    mapping.set_module_name(r"0\.fc", qconfigs.int4_weight_static()).set_module_name("0", None)
    resolved = mapping.resolve(model)
    assert (resolved["0"], resolved["0.conv"], resolved["0.fc"], resolved["1.conv"]) == (None, None, INT4, STATIC)


def test_an_inherited_name_beats_an_own_type(model):
    mapping = QConfigMapping(qconfigs.int8_static()).set_module_name("0", None)
    mapping.set_module_type(nn.Linear, qconfigs.int8_dynamic())
    assert mapping.resolve(model)["0.fc"] is None


def test_types_are_inherited_and_hold_for_subclasses(model):
    class MyBlock(Block):
        pass

    model[1] = MyBlock()
    resolved = QConfigMapping(qconfigs.int8_static()).set_module_type(Block, None).resolve(model)
    assert (resolved["0.conv"], resolved["1.fc"], resolved["2"]) == (None, None, STATIC)


def test_later_wins(model):
    mapping = QConfigMapping().set_module_name(r"\d", qconfigs.int8_static()).set_module_name("0", None)
    assert mapping.resolve(model)["0"] is None
    assert mapping.set_module_name(".", qconfigs.int4_weight_static()).resolve(model)["0"] == INT4


def test_names_match_from_end_to_end(model):
    with pytest.raises(ValueError, match="matches no module"):
        QConfigMapping(qconfigs.int8_static()).set_module_name("fc", None).resolve(model)
    resolved = QConfigMapping(qconfigs.int8_static()).set_module_name(r".*\.fc", None).resolve(model)
    assert (resolved["0.fc"], resolved["1.fc"], resolved["2"]) == (None, None, STATIC)


def test_a_name_that_matches_nothing_lists_the_nearest(model):
    mapping = QConfigMapping(qconfigs.int8_static()).set_module_name(r"0\.cnov", None)
    with pytest.raises(ValueError, match=r"'0\\\\.cnov' matches no module of Sequential; nearest: '0.conv'"):
        mapping.resolve(model)


def test_a_type_that_matches_nothing_is_warned_of_with_the_nearest(model):
    mapping = QConfigMapping(qconfigs.int8_static()).set_module_type(nn.Conv3d, None)
    with pytest.warns(UserWarning, match="the type torch.nn.modules.conv.Conv3d matches no module of Sequential; nearest: 'torch.nn.modules.conv.Conv2d'"):
        mapping.resolve(model)


def test_an_alias_of_a_shared_module_can_be_named(model):
    model.append(model[2])
    assert QConfigMapping(qconfigs.int8_static()).set_module_name("3", None).resolve(model)["3"] is None


def test_wrong_entries_are_refused_at_once():
    with pytest.raises(ValueError, match=r"pattern must be a regular expression, got '\*'"):
        QConfigMapping().set_module_name("*", None)
    with pytest.raises(TypeError, match="expected a QConfig .* or None, got 'int8'"):
        QConfigMapping().set_module_name("0", "int8")
    with pytest.raises(TypeError, match="cls must be a subclass of torch.nn.Module, got 'Linear'"):
        QConfigMapping().set_module_type("Linear", None)
    with pytest.raises(TypeError, match="qconfig must be a QConfig .* or a QConfigMapping, got 'int8'"):
        as_mapping("int8")


def test_a_bare_qconfig_is_a_mapping(model):
    assert as_mapping(qconfigs.int8_static()).resolve(model)["2"] == STATIC
    mapping = QConfigMapping()
    assert as_mapping(mapping) is mapping


def test_round_trip_through_json(model):
    mapping = QConfigMapping(qconfigs.int8_static(observer="percentile"))
    mapping.set_module_type(nn.Linear, qconfigs.int4_weight_only()).set_module_name("0", None)
    mapping.set_module_name("1", qconfigs.learned(weight_bits=3))
    copy = QConfigMapping.from_dict(json.loads(json.dumps(mapping.to_dict())))
    assert copy == mapping
    assert copy.resolve(model) == mapping.resolve(model)


def test_types_are_read_by_the_name_that_users_know():
    values = {"types": [{"type": "torch.nn.Linear", "qconfig": None}]}
    assert QConfigMapping.from_dict(values) == QConfigMapping().set_module_type(nn.Linear, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"defualt": None}, "QConfigMapping.from_dict: unknown key 'defualt'; allowed: default, names, object_types, types"),
        ({"default": {"activation": None}}, "QConfig.from_dict: key 'weight' is missing"),
        ({"default": {"weight": {"bits": 8}}}, "QuantSpec.from_dict: unknown key 'bits'"),
        ({"types": [{"type": "torch.nn.Linaer", "qconfig": None}]}, "no imported class 'torch.nn.Linaer'"),
    ],
)
def test_a_wrong_dict_says_which_key(values, message):
    with pytest.raises(ValueError, match=message):
        QConfigMapping.from_dict(values)
