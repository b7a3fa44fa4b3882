"""`torchquant scan`: targets and files in; tables, JSON and a folder out; mistakes in one sentence."""

import fcntl
import json
import textwrap

import pytest
import torch
import yaml
from click.testing import CliRunner

import torchquant as tq
from torchquant.cli import main

LAYERS = {"0", "3"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scan")
    (folder / "scanned_net.py").write_text(
        textwrap.dedent("""
        import torch
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5)).eval()
        x = torch.randn(12, 1, 8, 8)
        expected = net(x).detach()
        def build(): return net
        def batches(): return iter([x[:6], x[6:]])
        def closeness(model): return -(model(x) - expected).abs().mean()
        def nan(model): return float("nan")
        no_batches = []
        """)
    )
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5)).eval()
    x = torch.randn(12, 1, 8, 8)
    prepared = tq.prepare(net, x, tq.qconfigs.int8_static())
    tq.calibrate(prepared, [x])
    tq.trace(prepared, x).save(str(folder / "prepared.pt"))
    torch.save(x, folder / "x.pt")
    torch.save({"x": x}, folder / "dict.pt")
    return folder


@pytest.fixture
def run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return lambda *arguments: CliRunner().invoke(main, ["scan", *map(str, arguments)])


PYTHON = ("--model", "scanned_net:build", "--calibration", "scanned_net:batches", "--evaluate", "scanned_net:closeness")


def test_a_python_model(run, tmp_path):
    output = tmp_path / "out" / "scan"
    several = ("--qconfig", "int8_static", "--qconfig", "int4_weight_static")
    done = run(*PYTHON, *several, "--max-size-mb", 0.002, "--output", output, "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    report = tq.SensitivityReport.load(output / "report.json")
    assert document["rows"] == json.loads((output / "report.json").read_text())["rows"]
    assert {row["layer"] for row in report.rows} == LAYERS and set(report.candidates) == {"int8_static", "int4_weight_static"}
    assert document["proposal"]["size_mb"] <= 0.002 and document["proposal"]["drop"] >= 0
    assert (output / "scan.png").stat().st_size > 1000
    mapping = tq.QConfigMapping.load(output / "qconfig.yaml")
    assert mapping.to_dict() == document["proposal"]["qconfig"] and yaml.safe_load((output / "qconfig.yaml").read_text())
    from scanned_net import net, x

    tq.quantize_model(net, x, mapping, [x])
    # again: everything is in the folder, and a table is printed
    table = run(*PYTHON, *several, "--max-size-mb", 0.002, "--output", output)
    assert table.exit_code == 0 and "Sensitivity of layers" in table.stdout and "predicted: metric" in table.stdout
    measured = document["proposal"]["measured"]
    assert measured["latency_ms"] > 0 and measured["float_latency_ms"] > 0 and measured["metric"] <= 0
    shown = " ".join(table.stdout.split())
    assert "measured: metric" in shown and "the float model then:" in shown


@pytest.mark.parametrize("skip", ["--no-measure", "--no-latency"])
def test_a_proposal_is_not_measured_where_that_is_not_wanted(run, skip):
    done = run(*PYTHON, "--max-size-mb", 0.002, skip, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["proposal"]["measured"] is None
    assert "measured:" not in run(*PYTHON, "--max-size-mb", 0.002, skip).stdout


def test_two_processes_on_one_folder(run, tmp_path):
    with open(tmp_path / "scan.jsonl", "w") as file:  # what another process that scans into it holds
        fcntl.flock(file, fcntl.LOCK_EX)
        done = run(*PYTHON, "--no-latency", "--output", tmp_path)
    assert done.exit_code == 1 and "another process is writing" in done.stderr and not (tmp_path / "report.json").exists()
    assert run(*PYTHON, "--no-latency", "--output", tmp_path).exit_code == 0


def test_a_saved_mapping_is_a_candidate(run, tmp_path):
    tq.QConfigMapping(tq.qconfigs.int8_static()).set_module_name("0", None).save(tmp_path / "half.yaml")
    done = run(*PYTHON, "--qconfig", tmp_path / "half.yaml", "--no-latency", "--mode", "each_alone", "--json")
    assert [(row["layer"], row["candidate"]) for row in json.loads(done.stdout)["rows"]] == [("3", "half")]


def test_a_prepared_file_ranks_as_the_model_does(run):
    done = run("prepared.pt", "x.pt", "--json")
    assert done.exit_code == 0, done.output
    ranking = json.loads(done.stdout)["ranking"]
    python = json.loads(run(*PYTHON[:4], "--no-latency", "--json").stdout)["ranking"]
    assert [row["layer"] for row in ranking] == [layer for layer, _ in python]
    assert "Sensitivity of layers" in run("prepared.pt", "x.pt").stdout


def test_a_list_is_of_batches_and_a_tuple_of_arguments(run):
    whole = json.loads(run("prepared.pt", "x.pt", "--json").stdout)
    x = torch.load("x.pt")
    for name, held in (("list.pt", [x[:3], (x[3:],)]), ("tuple.pt", (x,))):
        torch.save(held, name)
        done = run("prepared.pt", name, "--json")
        assert done.exit_code == 0, done.output
        result = json.loads(done.stdout)
        assert result["quantized_sqnr_db"] == pytest.approx(whole["quantized_sqnr_db"], abs=1e-3)
    torch.save([], "empty.pt")
    assert "it holds an empty list" in " ".join(run("prepared.pt", "empty.pt").stderr.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either --model, or the files PREPARED and INPUTS"),
        (("prepared.pt",), "a prepared file needs INPUTS too"),
        (("prepared.pt", "dict.pt"), "'dict.pt' must hold a tensor, a tuple of tensors (the arguments of one call), or a list of such batches"),
        (("prepared.pt", "x.pt", "--max-size-mb", "1"), "--max-size-mb needs --model: a prepared file is ranked as it is, by the SQNR"),
        (("prepared.pt", "x.pt", "--output", "out"), "--output needs --model: a prepared file is ranked as it is, by the SQNR"),
        (("x.pt", "x.pt"), "'x.pt' is not a TorchScript file that can be read"),
        (("--model", "scanned_net:build"), "give --calibration, or --example-inputs"),
        (("--model", "scanned_net", *PYTHON[2:]), "is neither a file nor a target such as package.module:function"),
        (("--model", "scanned_net:nothing", *PYTHON[2:]), "'scanned_net:nothing' cannot be imported"),
        (("--model", "scanned_net:x", *PYTHON[2:]), "'scanned_net:x' must give a torch.nn.Module, it gives a Tensor"),
        (("--model", "scanned_net:build", "--calibration", "scanned_net:no_batches"), "it holds no batch"),
        ((*PYTHON, "--qconfig", "int9"), "--qconfig must be one of int8_static, "),
        ((*PYTHON, "--layer", "conv"), "'conv' matches no layer; nearest: '0', '3'"),
        ((*PYTHON, "--no-latency", "--max-size-mb", "0.00001"), "the budget cannot be met: max_size_mb=1e-05, and the least reachable is"),
        ((*PYTHON, "--max-size-mb", "nan"), "--max-size-mb must be a finite number of at least 0; got nan"),
        ((*PYTHON, "--max-latency-ms", "-1"), "--max-latency-ms must be a finite number of at least 0; got -1.0"),
        ((*PYTHON[:4], "--evaluate", "scanned_net:nan"), "evaluate must return a finite number; with the float model it returned nan"),
    ],
)
def test_mistakes_are_one_sentence(run, arguments, message):
    done = run(*arguments)
    assert done.exit_code != 0 and message in " ".join(done.stderr.split()), done.output
    assert "Traceback" not in done.output


def test_a_budget_that_cannot_be_met_keeps_the_report(run, tmp_path):
    done = run(*PYTHON, "--no-latency", "--max-size-mb", "0.00001", "--output", tmp_path)
    assert done.exit_code == 1
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "scan.jsonl", "scan.png"}


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (("--no-latency", "--max-latency-ms", "1"), "--max-latency-ms needs the layers' latency; leave out --no-latency"),
        (("--max-accuracy-drop", "0.1"), "--max-accuracy-drop needs a metric; give --evaluate"),
    ],
)
def test_a_budget_that_the_options_rule_out_is_refused_before_the_scan(run, tmp_path, budget, message):
    done = run(*PYTHON[:4], *budget, "--output", tmp_path)
    assert done.exit_code == 2 and message in " ".join(done.stderr.split()) and list(tmp_path.iterdir()) == []


def test_a_budget_that_cannot_be_met_is_told_after_the_report(run):
    arguments = (*PYTHON[:4], "--no-latency", "--max-size-mb", "0.00001")
    table, document = run(*arguments), run(*arguments, "--json")
    assert "Sensitivity of layers" in table.stdout and "Proposal" not in table.stdout
    assert {row["layer"] for row in json.loads(document.stdout)["rows"]} == LAYERS and json.loads(document.stdout)["proposal"] is None
    for done in (table, document):
        assert done.exit_code == 1 and "the budget cannot be met: max_size_mb=1e-05" in " ".join(done.stderr.split())


def test_help_teaches(run):
    text = run("--help").stdout
    assert "torchrun --nproc-per-node" in text and "def accuracy(model)" in text and "prepared.pt inputs.pt" in text
