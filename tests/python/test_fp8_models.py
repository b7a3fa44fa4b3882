"""fp8_dynamic through the whole way: placement, training, conversion with its receipt, the saved file, and what it refuses."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchquant as tq
from torchquant import _C
from torchquant import functional as TF
from torchquant.qconfig import QConfig, QConfigMapping, QuantSpec

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Mixed(nn.Module):
    """Linear layers, plain and functional, one used twice, beside layers that fp8 leaves alone."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.first, self.second = nn.Linear(16, 24), nn.Linear(24, 16, bias=False)
        self.matrix = nn.Parameter(torch.randn(16, 20) * 0.1)
        self.conv = nn.Conv1d(20, 4, 1)

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = x + self.second(F.gelu(self.first(x)))
        x = x + self.second(torch.relu(self.first(x)))
        return self.conv((x @ self.matrix).transpose(1, 2))


def mlp():
    return nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 8)).eval()


def rows_of(quantized):
    return {row["layer"]: row for row in quantized.receipt.rows}


def fp8_linear(x, layer, weight_dtype=E4M3, activation_dtype=E4M3):
    weight, weight_scale = TF.quantize_fp8_dynamic(layer.weight.detach(), dtype=weight_dtype)
    return torch.ops.torchquant.quantized_linear_fp8(x, weight, weight_scale, layer.bias.detach(), x_dtype=activation_dtype)


@pytest.mark.parametrize("weight_dtype, activation_dtype", [(E4M3, E4M3), (E5M2, E4M3), (E4M3, E5M2)])
def test_a_converted_model_computes_the_ops_it_says(weight_dtype, activation_dtype):
    model, x = mlp(), torch.randn(5, 32)
    qconfig = tq.qconfigs.fp8_dynamic(weight_dtype=weight_dtype, activation_dtype=activation_dtype)
    quantized = tq.quantize_model(model, x, qconfig)
    expected = fp8_linear(F.gelu(fp8_linear(x, model[0], weight_dtype, activation_dtype)), model[2], weight_dtype, activation_dtype)
    assert torch.equal(quantized(x), expected)
    precision = "fp8_e5m2" if weight_dtype is E5M2 else "fp8_e4m3"
    for layer in ("0", "2"):
        row = rows_of(quantized)[layer]
        assert (row["kind"], row["precision"], row["fallback"]) == ("linear", precision, False)
        assert row["kernel"].startswith("quantized_linear_fp8/")
    assert {buffer.dtype for buffer in quantized.buffers()} == {weight_dtype, torch.float32}
    assert (quantized(x) - model(x)).abs().max() < 0.1 * model(x).abs().max()


def test_autocast_does_not_narrow_the_codes():
    x, layer = torch.randn(5, 32), nn.Linear(32, 8)
    expected = fp8_linear(x, layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fp8_linear(x, layer), expected)


def test_what_fp8_leaves_alone_stays_float_and_nothing_is_raised():
    model, tokens = Mixed().eval(), torch.randint(0, 11, (2, 7))
    quantized = tq.quantize_model(model, tokens, tq.qconfigs.fp8_dynamic())
    rows = rows_of(quantized)
    assert {layer for layer, row in rows.items() if row["precision"] == "fp8_e4m3"} == {"first", "second", "first#2", "second#2", "matrix"}
    for layer in ("embedding", "conv"):
        assert rows[layer]["precision"] == "float" and "an fp8 QConfig quantizes linear layers, no" in rows[layer]["reason"]
    torch.testing.assert_close(quantized(tokens), model(tokens), rtol=0.1, atol=0.15)


def test_attention_projections():
    model = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    x = torch.randn(2, 6, 32)
    quantized = tq.quantize_model(model, x, tq.qconfigs.fp8_dynamic())
    rows = rows_of(quantized)
    assert {layer for layer, row in rows.items() if row["precision"] == "fp8_e4m3"} == {"self_attn", "self_attn.out_proj", "linear1", "linear2"}
    torch.testing.assert_close(quantized(x), model(x), rtol=0.1, atol=0.2)


def test_layers_that_read_one_input_are_one_product():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(16, 12) for _ in range(3))

        def forward(self, x):
            return self.query(x) * self.key(x) + self.value(x)

    model, x = Heads().eval(), torch.randn(5, 16)
    quantized = tq.quantize_model(model, x, tq.qconfigs.fp8_dynamic())
    parts = [fp8_linear(x, layer) for layer in (model.query, model.key, model.value)]
    assert torch.equal(quantized(x), parts[0] * parts[1] + parts[2])
    assert "merged" in rows_of(quantized)["value"]["fused"]


def test_the_file_keeps_codes_and_results(tmp_path):
    x = torch.randn(4, 32)
    quantized = tq.quantize_model(mlp(), x, tq.qconfigs.fp8_dynamic())
    quantized.save(tmp_path / "model.pt")
    loaded = tq.load(tmp_path / "model.pt")
    assert torch.equal(loaded(x), quantized(x)) and loaded.receipt.rows == quantized.receipt.rows
    assert sorted(str(b.dtype) for b in loaded.buffers()) == sorted(str(b.dtype) for b in quantized.buffers())
    assert (tmp_path / "model.pt").stat().st_size < 40_000
    assert loaded(torch.randn(9, 32)).shape == (9, 8)


def test_qat_trains_through_the_rounding():
    model, x = mlp(), torch.randn(64, 32)
    target = torch.randn(64, 8)
    prepared = tq.prepare_qat(model, x, tq.qconfigs.fp8_dynamic())
    assert torch.equal(prepared[0].weight, TF.fake_quantize_fp8(model[0].weight))
    optimizer = torch.optim.Adam(prepared.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.mse_loss(prepared(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    quantized = tq.convert(prepared.eval(), x)
    torch.testing.assert_close(quantized(x), prepared(x), rtol=1e-4, atol=1e-4)


def test_a_scan_switches_layers_and_counts_their_bytes():
    model, x = mlp(), torch.randn(16, 32)
    report = tq.sensitivity_scan(
        model, x, [x], lambda scanned: -float((scanned(x) - model(x)).square().mean()), tq.qconfigs.fp8_dynamic(), measure_latency=False
    )
    for row in report.rows:
        assert row["candidate"] == "fp8" and 0 < row["alone_drop"] and 0 < row["quantized_mb"] < row["float_mb"]


def test_prepared_models_keep_the_float_state_dict_and_copy():
    model, x = mlp(), torch.randn(3, 32)
    prepared = tq.prepare(model, x, tq.qconfigs.fp8_dynamic())
    assert torch.equal(prepared(x), model(x))  # nothing is quantized before calibrate
    tq.calibrate(prepared, [x])
    assert not torch.equal(prepared(x), model(x))
    assert set(model.state_dict()) <= set(prepared.state_dict())
    assert torch.equal(copy.deepcopy(prepared)(x), prepared(x))


def test_a_mapping_mixes_fp8_and_integers():
    model, x = mlp(), torch.randn(16, 32)
    mapping = QConfigMapping(tq.qconfigs.fp8_dynamic()).set_module_name("2", tq.qconfigs.int8_static())
    quantized = tq.quantize_model(model, x, mapping, calibration=[x])
    rows = rows_of(quantized)
    assert (rows["0"]["precision"], rows["2"]["precision"]) == ("fp8_e4m3", "int8")
    assert QConfigMapping.from_dict(mapping.to_dict()) == mapping


def test_a_gpu_from_8_9_on_is_needed():
    x = torch.randn(2, 32)
    assert _C.needed_capability(tq.quantize_model(mlp(), x, tq.qconfigs.fp8_dynamic()).script._c) == 89
    assert _C.needed_capability(tq.quantize_model(mlp(), x, tq.qconfigs.int8_dynamic()).script._c) == 80


def test_weights_that_are_not_finite_are_refused():
    model, x = mlp(), torch.randn(2, 32)
    with torch.no_grad():
        model[0].weight[3, 4] = float("inf")
    with pytest.raises(RuntimeError, match="the weight of '0' must be finite to become 8-bit floats"):
        tq.quantize_model(model, x, tq.qconfigs.fp8_dynamic())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: QuantSpec.fp8(torch.float16), r"QuantSpec.fp8: dtype must be torch.float8_e4m3fn or torch.float8_e5m2, got torch.float16"),
        (lambda: QuantSpec(-448, 448, True, axis=-1, dynamic=True, float8="e3m4"), "float8 must be None or one of e4m3fn, e5m2, got 'e3m4'"),
        (lambda: QuantSpec(-127, 127, True, axis=-1, dynamic=True, float8="e4m3fn"), r"must be \[-448, 448\] for e4m3fn"),
        (lambda: QuantSpec(-448, 448, True, axis=0, float8="e4m3fn"), "dynamic must be True when float8 is given, got False"),
        (lambda: QConfig(QuantSpec.fp8()), "QConfig: activation must be fp8 where the weight is, and nowhere else, got None"),
        (lambda: QConfig(QuantSpec.weight(), QuantSpec.fp8()), "QConfig: activation must be fp8 where the weight is, and nowhere else"),
        (lambda: tq.qconfigs.fp8_dynamic(weight_dtype=E5M2, activation_dtype=E5M2), "GPUs multiply no two e5m2"),
    ],
)  # fmt: skip
def test_specs_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
