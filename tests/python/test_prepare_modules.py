"""prepare on models that torch.fx cannot trace, and on the torch.nn modules that fake-quants cannot reach from outside."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import torchquant as tq
from torchquant.fake_quantize import FakeQuantize

QCONFIGS = {"static": tq.qconfigs.int8_static, "dynamic": tq.qconfigs.int8_dynamic, "weight_only": tq.qconfigs.int8_weight_only}


def prepare(model, inputs, qconfig=None):
    return tq.prepare(model, inputs, qconfig or tq.qconfigs.int8_static())


def fake_quants(prepared):
    """Path -> fake-quant, every path of a shared one."""
    return {name: module for name, module in prepared.named_modules(remove_duplicate=False) if isinstance(module, FakeQuantize)}


def quantized(prepared, *inputs):
    for fake_quant in fake_quants(prepared).values():
        fake_quant.enable_fake_quant(True)
    return prepared(*inputs)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.q, self.k, self.out = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        x = F.linear(x, self.qkv.weight, self.qkv.bias)[..., :8]
        return self.out(F.relu(self.q(x) + self.k(x)))


def test_each_layer_fake_quantizes_its_input_and_layers_with_the_same_input_share():
    prepared = prepare(Untraceable(), torch.randn(2, 8))
    assert prepared.torchquant_report.graph.startswith("module by module, because torch.fx: ")
    assert prepared.q.input_fake_quant is prepared.k.input_fake_quant
    assert prepared.q.input_fake_quant is not prepared.out.input_fake_quant
    assert set(fake_quants(prepared)) == {
        "qkv.weight_fake_quant", "qkv.weight_input_fake_quant", "q.weight_fake_quant", "q.input_fake_quant",
        "k.weight_fake_quant", "k.input_fake_quant", "out.weight_fake_quant", "out.input_fake_quant",
    }  # fmt: skip


def test_functional_calls_read_fake_quantized_inputs_and_weights():
    model, x = Untraceable(), torch.randn(2, 8)
    prepared = prepare(model, x)
    torch.testing.assert_close(prepared(x), model(x), rtol=0, atol=0)
    tq.calibrate(prepared, [x])
    read = prepared.qkv.weight_input_fake_quant(x)
    hidden = F.linear(read, prepared.qkv.weight_fake_quant(model.qkv.weight), model.qkv.bias)[..., :8]
    expected = prepared.out(F.relu(prepared.q(hidden) + prepared.k(hidden)))
    torch.testing.assert_close(prepared(x), expected, rtol=0, atol=0)
    assert (prepared(x) - model(x)).abs().max() > 0


def test_calls_of_one_layer_share_in_a_model_without_a_graph():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            for _ in range(int(x.size(0))):
                x = self.fc(x) if x.sum() < 1e9 else x
            return x

    assert set(fake_quants(prepare(Loop(), torch.randn(3, 4)))) == {"fc.weight_fake_quant", "fc.input_fake_quant"}


def test_layers_that_the_example_does_not_reach_stay_float():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x) if x.sum() < 1e9 else self.b(x)

    prepared = prepare(Branch(), torch.randn(3, 4))
    assert type(prepared.b) is nn.Linear
    assert {
        "name": "b",
        "role": "layer",
        "fake_quant": None,
        "reason": "example_inputs do not reach it",
    } in prepared.torchquant_report.rows


# Attention


def attention_cases():
    for name, settings, inputs in [
        ("self", {}, 1), ("batch_first", {"batch_first": True}, 1), ("no bias", {"bias": False}, 1), ("cross", {}, 2), ("three", {}, 3),
        ("kdim and vdim", {"kdim": 12, "vdim": 20}, 3), ("dropout", {"dropout": 0.5}, 1),
    ]:  # fmt: skip
        for call in ({}, {"need_weights": False}, {"average_attn_weights": False}):
            yield pytest.param(settings, inputs, call, id=f"{name} {call}")


@pytest.mark.parametrize(("settings", "inputs", "call"), list(attention_cases()))
@pytest.mark.parametrize("masks", ["none", "attention", "padding", "both"])
def test_attention_computes_what_torch_computes(settings, inputs, call, masks):
    attention = nn.MultiheadAttention(16, 4, **settings).eval()
    sizes = (5, 7, 7) if inputs > 1 else (5, 5, 5)  # length of the target and the source
    shape = (lambda length: (3, length)) if settings.get("batch_first") else (lambda length: (length, 3))
    query = torch.randn(*shape(sizes[0]), 16)
    key = query if inputs == 1 else torch.randn(*shape(sizes[1]), settings.get("kdim", 16))
    value = key if inputs < 3 else torch.randn(*shape(sizes[2]), settings.get("vdim", 16))
    call = dict(call)
    if masks in ("attention", "both"):
        call["attn_mask"] = torch.randn(sizes[0], sizes[1])
    if masks in ("padding", "both"):
        call["key_padding_mask"] = torch.zeros(3, sizes[1], dtype=torch.bool)
        call["key_padding_mask"][:, -2:] = True
        if masks == "both":
            call["key_padding_mask"] = torch.zeros(3, sizes[1]).masked_fill_(call["key_padding_mask"], -torch.inf)
    prepared = prepare(attention, {"query": query, "key": key, "value": value, **call})
    for ours, theirs in zip(prepared(query, key, value, **call), attention(query, key, value, **call)):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mask", ["bool", "per head", "causal"])
def test_attention_masks(mask):
    attention, x = nn.MultiheadAttention(16, 4, batch_first=True).eval(), torch.randn(3, 5, 16)
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    call = {
        "bool": {"attn_mask": causal.isinf()},
        "per head": {"attn_mask": torch.randn(12, 5, 5)},
        "causal": {"attn_mask": causal, "is_causal": True, "need_weights": False},
    }[mask]
    prepared = prepare(attention, (x, x, x))
    torch.testing.assert_close(prepared(x, x, x, **call)[0], attention(x, x, x, **call)[0])


def test_attention_without_a_batch():
    attention, x = nn.MultiheadAttention(16, 4).eval(), torch.randn(5, 16)
    prepared = prepare(attention, (x, x, x))
    for ours, theirs in zip(prepared(x, x, x), attention(x, x, x)):
        torch.testing.assert_close(ours, theirs)


def test_attention_trains_with_dropout_like_torch():
    attention, x = nn.MultiheadAttention(16, 4, dropout=0.5).train(), torch.randn(5, 3, 16)
    prepared = prepare(attention, (x, x, x))
    assert prepared.training and not torch.equal(prepared(x, x, x)[0], prepared(x, x, x)[0])


def test_attention_shares_the_input_that_query_key_and_value_share():
    attention, x, y = nn.MultiheadAttention(16, 4), torch.randn(5, 3, 16), torch.randn(7, 3, 16)
    itself, cross = prepare(attention, (x, x, x)), prepare(attention, (x, y, y))
    assert itself.query_fake_quant is itself.key_fake_quant is itself.value_fake_quant
    assert cross.query_fake_quant is not cross.key_fake_quant is cross.value_fake_quant
    assert set(attention.state_dict()) < set(itself.state_dict())


@pytest.mark.parametrize("qconfig", QCONFIGS)
def test_every_product_of_attention_reads_its_fake_quants(qconfig):
    attention, x = nn.MultiheadAttention(16, 4, batch_first=True).eval(), torch.randn(2, 5, 16)
    prepared = prepare(attention, (x, x, x), QCONFIGS[qconfig]())
    torch.testing.assert_close(prepared(x, x, x)[0], attention(x, x, x)[0])
    tq.calibrate(prepared, [(x, x, x)])
    read = prepared.query_fake_quant(x) if qconfig != "weight_only" else x
    q, k, v = F.linear(read, prepared.in_proj_weight_fake_quant(attention.in_proj_weight), attention.in_proj_bias).chunk(3, -1)
    q, k, v = (t.view(2, 5, 4, 4).transpose(1, 2) for t in (q, k, v))
    product = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 16)
    if qconfig != "weight_only":
        product = prepared.out_proj.input_fake_quant(product)
    expected = F.linear(product, prepared.out_proj.weight_fake_quant(attention.out_proj.weight), attention.out_proj.bias)
    torch.testing.assert_close(prepared(x, x, x, need_weights=False)[0], expected)


def test_cross_attention_traces_with_a_fake_quant_at_each_product():
    attention, x, y = nn.MultiheadAttention(16, 4).eval(), torch.randn(5, 3, 16), torch.randn(7, 3, 16)
    prepared = prepare(attention, (x, y, y))
    tq.calibrate(prepared, [(x, y, y)])
    expected = prepared(x, y, y)
    traced = torch.jit.trace(prepared, (x, y, y), check_trace=False)
    for ours, theirs in zip(traced(x, y, y), expected):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    linears = [node for node in traced.inlined_graph.nodes() if node.kind() == "aten::linear"]
    assert len(linears) == 4  # query, key, value, output
    assert all(node.inputsAt(i).node().kind() == "torchquant::fake_quantize" for node in linears for i in (0, 1))


@pytest.mark.parametrize("settings", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_attention_with_extra_keys_is_refused(settings):
    x = torch.randn(5, 3, 16)
    with pytest.raises(ValueError, match="add_bias_kv or add_zero_attn is not supported"):
        prepare(nn.MultiheadAttention(16, 4, **settings), (x, x, x))


# Transformer layers


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("masked", [False, True])
def test_encoder_layers_compute_what_torch_computes(norm_first, batch_first, activation, masked):
    layer = nn.TransformerEncoderLayer(16, 4, 32, activation=activation, batch_first=batch_first, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first and not norm_first).eval()
    x = torch.randn(3, 5, 16) if batch_first else torch.randn(5, 3, 16)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[0, -2:] = masked
    call = {"src_key_padding_mask": padding} if masked else {}
    prepared = prepare(encoder, {"src": x, **call})
    with torch.no_grad():  # without gradients torch's own layers take their fast path
        ours, theirs = prepared(x, **call), encoder(x, **call)
    kept = ~padding if batch_first else ~padding.T
    torch.testing.assert_close(ours[kept], theirs[kept])
    assert set(encoder.state_dict()) < set(prepared.state_dict())


@pytest.mark.parametrize("grad", [False, True])
def test_encoder_layers_run_their_fake_quants_in_eval_mode(grad):
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2).eval()
    x = torch.randn(3, 5, 16)
    prepared = prepare(encoder, x)
    tq.calibrate(prepared, [x])
    with torch.set_grad_enabled(grad):
        assert 0 < (prepared(x) - encoder(x)).abs().max() < 0.2
        traced = torch.jit.trace(prepared, x)
    count = sum(node.kind() == "torchquant::fake_quantize" for node in traced.inlined_graph.nodes())
    assert count == 2 * (4 + 4)  # four products a layer (in, out, two of the feed-forward), a weight and an input each


def test_a_transformer_inside_a_traced_model():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(20, 16)
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)
            self.head = nn.Linear(16, 3)

        def forward(self, tokens):
            return self.head(self.encoder(self.embedding(tokens)).mean(1))

    prepared = prepare(Classifier().eval(), torch.randint(20, (2, 6)))
    assert prepared.torchquant_report.graph == "torch.fx"
    assert {
        "activation_fake_quants.mean",
        "encoder.layers.0.self_attn.query_fake_quant",
        "encoder.layers.0.linear2.input_fake_quant",
    } <= set(fake_quants(prepared))
    tokens = torch.randint(20, (2, 9))
    tq.calibrate(prepared, [tokens])
    assert torch.isfinite(prepared(tokens)).all()


# Recurrent layers


def recurrent_cases():
    for cls in (nn.LSTM, nn.GRU):
        for settings in (
            {},
            {"num_layers": 2, "bidirectional": True},
            {"batch_first": True, "num_layers": 2},
            {"bias": False, "bidirectional": True},
        ):
            yield pytest.param(cls, settings, id=f"{cls.__name__} {settings}")


def assert_same(ours, theirs):
    if isinstance(theirs, torch.Tensor):
        torch.testing.assert_close(ours, theirs)
    else:
        assert type(ours) is type(theirs)
        for pair in zip(ours, theirs, strict=True):
            assert_same(*pair)


@pytest.mark.parametrize(("cls", "settings"), list(recurrent_cases()))
def test_recurrent_layers_compute_what_torch_computes(cls, settings):
    layer, x = cls(6, 8, **settings).eval(), torch.randn(5, 3, 6)
    prepared = prepare(layer, x)
    assert_same(prepared(x), layer(x))
    batch = 5 if settings.get("batch_first") else 3
    state = torch.randn(layer.num_layers * (2 if layer.bidirectional else 1), batch, 8)
    state = (state, state.sin()) if cls is nn.LSTM else state
    assert_same(prepared(x, state), layer(x, state))
    assert_same(prepared(x[0]), layer(x[0]))  # without a batch
    assert set(layer.state_dict()) < set(prepared.state_dict())


@pytest.mark.parametrize(("cls", "settings"), list(recurrent_cases()))
@pytest.mark.parametrize("qconfig", QCONFIGS)
def test_recurrent_layers_trace_to_a_loop_over_any_length(cls, settings, qconfig):
    layer, x = cls(6, 8, **settings).eval(), torch.randn(5, 3, 6)
    prepared = prepare(layer, x, QCONFIGS[qconfig]())
    tq.calibrate(prepared, [x])
    assert 0 < (prepared(x)[0] - layer(x)[0]).abs().max() < 0.1
    with torch.no_grad():
        traced = torch.jit.trace(prepared, x)
        longer = torch.randn(9, 3, 6) if not settings.get("batch_first") else torch.randn(5, 9, 6)
        assert_same(traced(longer), prepared(longer))
    assert "prim::Loop" in str(traced.inlined_graph)


def test_recurrent_dropout_follows_train_and_eval():
    layer, x = nn.LSTM(6, 8, num_layers=2, dropout=0.5), torch.randn(5, 3, 6)
    prepared = prepare(layer, x)
    assert not torch.equal(prepared(x)[0], prepared(x)[0])
    prepared.eval()
    torch.testing.assert_close(prepared(x), prepared(x), rtol=0, atol=0)


def test_recurrent_layers_train():
    model, x = nn.GRU(6, 8, num_layers=2), torch.randn(5, 3, 6)
    prepared = tq.prepare_qat(model, x, tq.qconfigs.int8_dynamic())
    prepared(x)[0].square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in prepared.parameters())


def test_recurrent_layers_refuse_what_they_cannot_run():
    packed = pack_sequence([torch.randn(4, 6), torch.randn(2, 6)])
    with pytest.raises(TypeError, match="LSTM: a quantized recurrent layer takes padded tensors, got a PackedSequence"):
        prepare(nn.LSTM(6, 8), torch.randn(5, 3, 6))(packed)
    with pytest.raises(ValueError, match="an LSTM with proj_size is not supported"):
        prepare(nn.LSTM(6, 8, proj_size=4), torch.randn(5, 3, 6))


def test_subclasses_with_a_forward_of_their_own_keep_it():
    class Mine(nn.LSTM):
        def forward(self, x):
            return super().forward(x)[0] * 2

    model, x = nn.Sequential(Mine(6, 8), nn.Linear(8, 2)), torch.randn(5, 3, 6)
    prepared = prepare(model, x)
    assert type(prepared[0]) is Mine
    assert {
        "name": "0",
        "role": "layer",
        "fake_quant": None,
        "reason": "Mine has a forward of its own",
    } in prepared.torchquant_report.rows


@pytest.mark.parametrize(("settings", "message"), [({"max_norm": 1.0}, "max_norm"), ({"sparse": True}, "sparse")])
def test_embeddings_that_write_their_weight_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"an Embedding with {message} cannot read fake-quantized weights"):
        tq.prepare_qat(
            nn.Sequential(nn.Embedding(10, 4, **settings)), torch.zeros(2, 3, dtype=torch.long), tq.qconfigs.int8_weight_only()
        )


def test_groups_of_recurrent_weights():
    prepared = prepare(nn.GRU(8, 8), torch.randn(5, 3, 8), tq.qconfigs.int4_weight_only(group_size=4))
    assert prepared.weight_ih_l0_fake_quant.scale.shape == (24, 2)


def test_compile_runs_functional_calls():
    model, x = Untraceable(), torch.randn(2, 8)
    prepared = tq.prepare_qat(model, x, tq.qconfigs.int8_static())
    prepared(x)
    torch.testing.assert_close(torch.compile(prepared.eval(), backend="aot_eager")(x), prepared(x))


def test_a_recurrent_classifier():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.lstm, self.head = nn.Embedding(20, 6), nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, tokens):
            return self.head(self.lstm(self.embedding(tokens))[0][:, -1])

    prepared = prepare(Classifier(), torch.randint(20, (2, 6)))
    tokens = torch.randint(20, (4, 9))
    tq.calibrate(prepared, [tokens])
    assert prepared(tokens).shape == (4, 3) and "lstm.weight_hh_l0_fake_quant" in fake_quants(prepared)
