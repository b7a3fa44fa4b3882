"""QuantizedModel.save and torchquant.load: what a file holds, and that load refuses what save did not write."""

import hashlib
import json
import os
import resource
import signal
import zipfile

import pytest
import torch

from torchquant.quantized_model import QuantizedModel, load
from torchquant.receipt import Receipt

ROWS = [
    {"layer": "0", "kind": "linear", "precision": "int8", "kernel": "quantized_linear/reference", "reason": "", "fused": ["relu"],
     "inputs": ["in"], "output": "out", "fallback": False},
    {"layer": "2", "kind": "linear", "precision": "float", "kernel": "", "reason": "asked to stay", "fused": [], "inputs": [],
     "output": None, "fallback": True},
]  # fmt: skip


def make_model(seed=0):
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    return QuantizedModel(torch.jit.script(net.eval()), Receipt(ROWS))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pt"


def test_round_trip(path):
    model, x = make_model(), torch.randn(4, 3)
    model.save(path)
    loaded = load(path)
    assert torch.equal(loaded(x), model(x))
    assert loaded.receipt.rows == ROWS
    assert not loaded(x).requires_grad


def test_is_an_ordinary_torchscript_file(path):
    model, x = make_model(), torch.randn(4, 3)
    model.save(path)
    assert torch.equal(torch.jit.load(path)(x), model(x))


def test_every_record_has_the_sha256_that_hashlib_computes(path):
    make_model().save(path)
    with zipfile.ZipFile(path) as archive:
        contents = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(contents.pop("extra/torchquant.json"))
    contents.pop(".data/serialization_id")  # torch writes it last, nothing reads it
    assert manifest["records"] == {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    digest = manifest.pop("sha256")
    assert digest == hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    assert manifest["torch_version"] == torch.__version__.split("+")[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "No such file or directory"),
        (lambda path: path.write_bytes(b""), "truncated or empty"),
        (lambda path: path.write_text("a text file"), "not a TorchScript archive"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "truncated or damaged"),
        (lambda path: torch.jit.script(torch.nn.ReLU()).save(path), "not a TorchQuant file.*QuantizedModel.save"),
        (lambda path: torch.save({"weight": torch.ones(3)}, path), "not a TorchQuant file"),
    ],
    ids=["missing", "empty", "text", "truncated", "foreign TorchScript", "state_dict"],
)
def test_load_refuses(path, damage, message):
    make_model().save(path)
    damage(path)
    with pytest.raises(RuntimeError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_flipped_weight_bit_is_found_before_anything_runs(path):
    make_model().save(path)
    content = bytearray(path.read_bytes())
    weight = make_model().script.state_dict()["0.weight"].numpy().tobytes()
    content[content.find(weight) + 5] ^= 4
    path.write_bytes(content)
    torch.jit.load(path)  # torch itself takes it
    with pytest.raises(RuntimeError, match="record 'data/[0-9]+' does not match its SHA-256"):
        load(path)


def rewrite(path, change):
    """The file with every record changed, and the digests that fit: what another version of torchquant could have written."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: change(name, archive.read(name)) for name in archive.namelist()}
    (manifest_name,) = [name for name in contents if name.endswith("/extra/torchquant.json")]
    manifest = json.loads(contents[manifest_name])
    manifest["records"] = {name: hashlib.sha256(contents[f"{manifest_name.split('/')[0]}/{name}"]).hexdigest() for name in manifest["records"]}
    del manifest["sha256"]
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    contents[manifest_name] = json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def test_an_op_of_a_newer_version_is_refused_in_one_sentence(path):
    make_model().save(path)
    rewrite(path, lambda name, content: content.replace(b"torch.linear", b"torch.linear_of_tomorrow"))
    with pytest.raises(RuntimeError, match="cannot load .* with torch .*linear_of_tomorrow") as error:
        load(path)
    assert str(path) in str(error.value) and "written by torchquant" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_save_that_fails_leaves_the_old_file(path):
    model, x = make_model(), torch.randn(4, 3)
    model.save(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # writing beyond fails, as on a full disk
    try:
        with pytest.raises(RuntimeError, match="cannot write .*File too large; what was there before is unchanged"):
            make_model(seed=1).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert torch.equal(load(path)(x), model(x))
    assert os.listdir(path.parent) == [path.name]


def test_save_into_a_missing_directory(tmp_path):
    with pytest.raises(RuntimeError, match="cannot write '.*nowhere/model.pt': No such file or directory"):
        make_model().save(tmp_path / "nowhere" / "model.pt")
    assert not (tmp_path / "nowhere").exists()


def test_saving_over_a_loaded_file_is_safe(path):
    make_model().save(path)
    loaded, x = load(path), torch.randn(4, 3)
    expected = loaded(x)
    make_model(seed=1).save(path)
    assert torch.equal(loaded(x), expected)


def test_no_source_paths_of_this_machine_are_saved(path):
    make_model().save(path)
    with zipfile.ZipFile(path) as archive:
        assert not any(os.getcwd().encode() in archive.read(name) for name in archive.namelist())


def test_receipt_in_python():
    receipt = Receipt(ROWS)
    assert receipt.summary() == {"int8": 1, "float": 1}
    assert Receipt.from_json(receipt.to_json()).rows == ROWS
    assert "quantized_linear/reference" in str(receipt) and "asked to stay" in str(receipt)


def test_quantized_model_is_a_module():
    model = make_model()
    assert model.train().training is False
    assert torch.nn.Sequential(model).to("cpu")(torch.ones(1, 3)).shape == (1, 2)


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(RuntimeError, match="torchquant::save: cannot write .*: it exists and is no regular file"):
            make_model().save(path)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]
