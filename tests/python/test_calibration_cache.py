"""Calibration files: exact, refused for another model, whole when two processes write, and readable on the command line."""

import json
import multiprocessing

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import torchquant as tq
from torchquant import cli
from torchquant.methods import load_calibration, save_calibration


def make_model(width=8):
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 4)).eval()


EXAMPLE = torch.linspace(-2, 3, 2 * 3 * 64).view(2, 3, 8, 8)


def prepare(width=8, **qconfig):
    return tq.prepare(make_model(width), EXAMPLE, tq.qconfigs.int8_static(**qconfig))


def calibrated(**options):
    prepared = prepare(**options)
    tq.calibrate(prepared, [EXAMPLE, 1.3 * EXAMPLE])
    return prepared


@pytest.fixture
def path(tmp_path):
    save_calibration(calibrated(), tmp_path / "ranges.json")
    return tmp_path / "ranges.json"


@pytest.mark.parametrize("observer", ["min_max", "moving_average", "percentile", "mse", "entropy"])
def test_the_loaded_model_has_the_state_of_the_saved_one(tmp_path, observer):
    saved = calibrated(observer=observer)
    save_calibration(saved, tmp_path / "c.json")
    loaded = prepare(observer=observer)
    assert load_calibration(loaded, tmp_path / "c.json") is loaded
    for name, value in saved.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert torch.equal(tq.convert(loaded, EXAMPLE)(EXAMPLE), tq.convert(saved, EXAMPLE)(EXAMPLE))


def test_calibration_goes_on_from_the_file(path):
    loaded, whole = load_calibration(prepare(), path), calibrated()
    for prepared in (loaded, whole):
        tq.calibrate(prepared, [5 * EXAMPLE])
    assert torch.equal(loaded.activation_fake_quants.input.scale, whole.activation_fake_quants.input.scale)


def test_weights_keep_their_own_ranges(path):
    prepared = prepare()
    scale = prepared[0].weight_fake_quant.scale.clone()
    load_calibration(prepared, path)
    assert torch.equal(prepared[0].weight_fake_quant.scale, scale)
    assert "weight_fake_quant" not in json.dumps(json.loads(path.read_text())["ranges"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 16}, r"'0.bias' has shape \[8\] in the file and \[16\] in this model \(and 4 more\)"),
        ({"observer": "min_max"}, r"'activation_fake_quants.\w+' has observer='mse' in the file and observer='min_max' in this model's"),
        ({"activation_bits": 6}, r".*has quant_max=255 in the file and quant_max=63 in this model's QConfig"),
    ],
)
def test_a_cache_of_another_model_is_refused_and_changes_nothing(path, options, message):
    prepared = prepare(**options)
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    with pytest.raises(ValueError, match=rf"load_calibration: .*ranges.json' is the calibration of another model: {message}"):
        load_calibration(prepared, path)
    for name, value in prepared.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_another_structure_is_named_with_the_nearest_names(path):
    model = make_model()
    model.add_module("extra", nn.Linear(4, 4))
    prepared = tq.prepare(model, EXAMPLE, tq.qconfigs.int8_static())
    with pytest.raises(ValueError, match=r"this model has the parameter 'extra.bias', the file has none of that name; nearest: "):
        load_calibration(prepared, path)


def test_damaged_and_foreign_files_are_refused(path, tmp_path):
    text = path.read_text()
    document = json.loads(text)
    scale = document["ranges"]["activation_fake_quants.input"]["scale"]["values"][0]
    (tmp_path / "flipped.json").write_text(text.replace(repr(scale), repr(scale * 2)))
    (tmp_path / "cut.json").write_text(text[: len(text) // 2])
    (tmp_path / "new.json").write_text(json.dumps({**document, "version": 2}))
    (tmp_path / "other.json").write_text("[]")
    for name, message in (
        ("flipped", "is damaged: its content does not have the SHA-256"),
        ("cut", "is no calibration file, or is damaged"),
        ("new", "has version 2; this torchquant reads version 1"),
        ("other", "is no calibration file of torchquant"),
    ):
        with pytest.raises(ValueError, match=rf"load_calibration: .*{name}.json' {message}"):
            load_calibration(prepare(), tmp_path / f"{name}.json")


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(TypeError, match="save_calibration: expected a model that torchquant.prepare returned, got Sequential"):
        save_calibration(make_model(), tmp_path / "c.json")
    with pytest.raises(ValueError, match="save_calibration: the model is not calibrated"):
        save_calibration(prepare(), tmp_path / "c.json")
    dynamic = tq.prepare(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4), tq.qconfigs.int8_dynamic())
    with pytest.raises(ValueError, match="save_calibration: no activation of this model has a range to calibrate"):
        save_calibration(dynamic, tmp_path / "c.json")
    assert not list(tmp_path.iterdir())


def write_often(path, factor):
    torch.set_num_threads(1)
    prepared = prepare()
    tq.calibrate(prepared, [factor * EXAMPLE])
    for _ in range(20):
        save_calibration(prepared, path)


def test_two_processes_on_one_file_leave_one_of_the_two_whole(tmp_path):
    path = tmp_path / "ranges.json"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(path, factor)) for factor in (1.0, 2.0)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            load_calibration(prepare(), path)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    scale = load_calibration(prepare(), path).activation_fake_quants.input.scale.item()
    alone = []
    for factor in (1.0, 2.0):
        prepared = prepare()
        tq.calibrate(prepared, [factor * EXAMPLE])
        alone.append(prepared.activation_fake_quants.input.scale.item())
    assert scale in alone
    assert [p.name for p in tmp_path.iterdir()] == ["ranges.json"]


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def test_show_prints_the_ranges(path):
    result = run("calibration", "show", path)
    assert result.exit_code == 0 and "Ranges" in result.stdout and "3.9" in result.stdout
    report = json.loads(run("calibration", "show", path, "--json").stdout)
    row = next(row for row in report["rows"] if row["fake_quant"] == "activation_fake_quants.input")
    assert row["min_val"] == [pytest.approx(-2.6)] and row["max_val"] == [pytest.approx(3.9)]
    assert row["values_seen"] == 2 * EXAMPLE.numel()
    assert report["parameters"]["0.weight"] == [8, 3, 3, 3]


def test_show_refuses_in_one_sentence(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    result = run("calibration", "show", tmp_path / "x.json")
    assert result.exit_code == 1
    assert "is no calibration file of torchquant" in result.stderr and "Traceback" not in result.stderr
