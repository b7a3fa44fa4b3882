"""QConfigMapping in YAML and JSON files: exact both ways, and what a wrong file says."""

import json
import os

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchquant import QConfig, QConfigMapping, QuantSpec, qconfigs

ENDINGS = ("yaml", "yml", "json")


def sample():
    return (
        QConfigMapping(qconfigs.int8_static(observer="percentile"))
        .set_module_type(nn.Linear, qconfigs.int8_dynamic())
        .set_module_name(r"layer\d+\.0", None)
        .set_module_name("head", qconfigs.int4_weight_only(32, symmetric=False))
    )


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_give_an_equal_mapping(tmp_path, ending):
    sample().save(tmp_path / f"q.{ending}")
    assert QConfigMapping.load(tmp_path / f"q.{ending}") == sample()
    assert [p.name for p in tmp_path.iterdir()] == [f"q.{ending}"]


@given(
    bits=st.integers(2, 8),
    observer=st.sampled_from(["auto", "min_max", "moving_average", "percentile", "mse", "entropy"]),
    averaging=st.floats(1e-12, 1.0, exclude_min=True),
    percentile=st.floats(50, 100, exclude_min=True),
    bins=st.integers(16, 1 << 20),
)
def test_every_field_survives_exactly(tmp_path_factory, bits, observer, averaging, percentile, bins):
    folder = tmp_path_factory.mktemp("mapping")
    spec = QuantSpec.activation(bits, observer=observer, averaging_constant=averaging, percentile=percentile, bins=bins)
    mapping = QConfigMapping(QConfig(QuantSpec.weight(bits), spec))
    for ending in ("yaml", "json"):
        mapping.save(folder / f"q.{ending}")
        assert QConfigMapping.load(folder / f"q.{ending}") == mapping


def test_the_file_is_what_a_person_reads(tmp_path):
    sample().save(tmp_path / "q.yaml")
    values = yaml.safe_load((tmp_path / "q.yaml").read_text())
    assert values["version"] == 1
    assert values["names"][0] == {"name": r"layer\d+\.0", "qconfig": None}
    assert values["types"][0]["type"] == "torch.nn.modules.linear.Linear"


def test_dicts_without_a_version_are_read():
    values = sample().to_dict()
    del values["version"]
    assert QConfigMapping.from_dict(values) == sample()


def wrong_file(tmp_path, change, ending="json"):
    values = sample().to_dict()
    change(values)
    path = tmp_path / f"q.{ending}"
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(nmaes=[]), r"q.json': QConfigMapping.from_dict: unknown key 'nmaes'; .*nearest: 'names'"),
        (lambda v: v["default"]["weight"].update(quant_mx=3), r"unknown key 'quant_mx'; .*nearest: 'quant_max', 'quant_min'"),
        (lambda v: v["default"].pop("weight"), r"QConfig.from_dict: key 'weight' is missing"),
        (lambda v: v.update(version=2), r"version must be 1, which this torchquant reads, got 2"),
        (lambda v: v["types"][0].update(type="torch.nn.Lineaer"), r"there is no imported class 'torch.nn.Lineaer'"),
        (lambda v: v["default"]["weight"].update(observer="mean"), r"observer must be one of auto, .*got 'mean'"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        QConfigMapping.load(wrong_file(tmp_path, change))


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"QConfigMapping.save: path must be a name that ends in .yaml, .yml or .json, got 'q.txt'"):
        sample().save("q.txt")
    (tmp_path / "q.json").write_text("{")
    with pytest.raises(ValueError, match=r"QConfigMapping.load: .*q.json' cannot be parsed"):
        QConfigMapping.load(tmp_path / "q.json")
    (tmp_path / "q.yaml").write_text("[1, 2")
    with pytest.raises(ValueError, match=r"QConfigMapping.load: .*q.yaml' cannot be parsed"):
        QConfigMapping.load(tmp_path / "q.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(TypeError, match=r"list.yaml': QConfigMapping.from_dict: expected a dict, got \[1\]"):
        QConfigMapping.load(tmp_path / "list.yaml")
    with pytest.raises(FileNotFoundError):
        QConfigMapping.load(tmp_path / "missing.yaml")


def test_a_layer_name_that_matches_nothing_comes_with_the_nearest(tmp_path):
    QConfigMapping(qconfigs.int8_static()).set_module_name("convv1", None).save(tmp_path / "q.yaml")
    model = nn.Sequential()
    model.add_module("conv1", nn.Conv2d(1, 1, 1))
    model.add_module("fc", nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"the name 'convv1' matches no module of Sequential; nearest: 'conv1'"):
        QConfigMapping.load(tmp_path / "q.yaml").resolve(model)


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "q.json"
    sample().save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        QConfigMapping().save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["q.json"]
