"""nn.MultiheadAttention whose projections are ordinary quantized linear layers.

torch's own forward hands all weights to one function and never calls out_proj. This one computes the same numbers from
F.linear, scaled_dot_product_attention and a call of out_proj, so that each projection has its fake-quants and converts
like any linear layer. The attention product itself stays float by design.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..patterns import LINEAR
from ..quantized_parameter import add_submodule, add_weight_fake_quant, extend, float_parameter

_INPUTS = ("query", "key", "value")
_NOT_PACKED = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


class QuantizedAttention(nn.Module):
    def forward(
        self,
        query,
        key,
        value,
        key_padding_mask=None,
        need_weights=True,
        attn_mask=None,
        average_attn_weights=True,
        is_causal=False,
    ):
        if query.dim() not in (2, 3) or key.dim() != query.dim() or value.dim() != query.dim():
            raise ValueError(
                f"MultiheadAttention: query, key and value must all be 2-D or all 3-D, got {query.dim()}-D, {key.dim()}-D, {value.dim()}-D"
            )
        if is_causal and attn_mask is None:
            raise ValueError("MultiheadAttention: is_causal is a hint about attn_mask, so attn_mask must be given too")
        batched, batch_first = query.dim() == 3, self.batch_first and query.dim() == 3
        query, key, value = self._fake_quantize(query, key, value)
        query, key, value = (self._split_heads(x, batch_first) for x in self._project(query, key, value))

        # the hint is only worth something while the mask is not needed otherwise
        is_causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if is_causal else self._mask(query, key.size(2), attn_mask, key_padding_mask)
        weights = None
        if need_weights:
            scores = (query * math.sqrt(1.0 / self.head_dim)) @ key.transpose(-2, -1)
            weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, self.dropout, self.training)
            output = weights @ value
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            output = F.scaled_dot_product_attention(query, key, value, mask, self.dropout if self.training else 0.0, is_causal)
        output = output.transpose(1, 2) if batch_first else output.permute(2, 0, 1, 3)
        output = self.out_proj(output.flatten(-2))
        return output if batched else output.squeeze(1), weights

    def _fake_quantize(self, query, key, value):
        """Keeps tensors that are one and the same so: _project then needs one product for them."""
        if "query_fake_quant" not in self._modules:
            return query, key, value
        read = self.query_fake_quant(query)
        read_key = read if key is query else self.key_fake_quant(key)
        read_value = read if value is query else read_key if value is key else self.value_fake_quant(value)
        return read, read_key, read_value

    def _project(self, query, key, value):
        if not self._qkv_same_embed_dim:
            biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            return [F.linear(x, weight, bias) for x, weight, bias in zip((query, key, value), weights, biases)]
        if key is query and value is query:
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        if value is key:
            return self._project_rows(query, 0, 1), *self._project_rows(key, 1, 3).chunk(2, dim=-1)
        return [self._project_rows(x, i, i + 1) for i, x in enumerate((query, key, value))]

    def _project_rows(self, x, first, last):
        rows = slice(first * self.embed_dim, last * self.embed_dim)
        bias = None if self.in_proj_bias is None else self.in_proj_bias[rows]
        fake_quant = self._modules.get("in_proj_weight_fake_quant")
        if torch.jit.is_tracing() and fake_quant is not None:
            # the converter looks for the fake-quant right at the product, so the parameter is cut, not the fake-quantized weight
            return F.linear(x, _fake_quantize_rows(fake_quant, float_parameter(self, "in_proj_weight"), rows), bias)
        return F.linear(x, self.in_proj_weight[rows], bias)

    def _split_heads(self, x, batch_first):
        """(batch, heads, length, head_dim) from (batch, length, embed_dim), (length, batch, embed_dim) or (length,
        embed_dim).
        """
        x = x if x.dim() == 3 else x.unsqueeze(1)
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        return x.transpose(1, 2) if batch_first else x.permute(1, 2, 0, 3)

    def _mask(self, query, source_length, attn_mask, key_padding_mask):
        """One mask to add to the scores, broadcasting over (batch, heads, length, source length)."""
        batch, heads, length, _ = query.shape
        mask = None
        if attn_mask is not None:
            allowed = (length, source_length) if attn_mask.dim() == 2 else (batch * heads, length, source_length)
            if not torch.jit.is_tracing() and attn_mask.shape != allowed:  # sizes are tensors while tracing
                raise ValueError(f"MultiheadAttention: attn_mask must have shape {allowed}, got {tuple(attn_mask.shape)}")
            mask = _additive(attn_mask, query.dtype)
            mask = mask.view(batch, heads, length, source_length) if mask.dim() == 3 else mask
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, query.dtype).view(batch, 1, 1, source_length)
            mask = padding if mask is None else mask + padding
        return mask


def _additive(mask, dtype):
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
    if not mask.is_floating_point():
        raise TypeError(f"MultiheadAttention: a mask must be bool or floating point, got {mask.dtype}")
    return mask


def _fake_quantize_rows(fake_quant, weight, rows):
    spec = fake_quant.spec
    if spec.dynamic:
        return fake_quant(weight[rows])
    scale, zero_point = fake_quant.scale, fake_quant.zero_point
    if spec.axis is not None:
        scale, zero_point = scale[rows], zero_point[rows]
    return torch.ops.torchquant.fake_quantize(
        weight[rows],
        scale,
        zero_point,
        axis=spec.axis,
        group_size=spec.group_size,
        quant_min=spec.quant_min,
        quant_max=spec.quant_max,
    )


def place(placement, inputs, path, module, call):
    """Quantizes the projections of the attention at `path`, which the example run called like `call`."""
    if call is None:
        placement.report.add(path, "layer", None, "example_inputs do not reach it")
        return
    packed, output = placement.settings(path, LINEAR), placement.settings(f"{path}.out_proj" if path else "out_proj", LINEAR)
    if packed is None and output is None:
        return
    if module.bias_k is not None or module.add_zero_attn:
        raise ValueError(
            f"prepare: {path or 'the model'}: MultiheadAttention with add_bias_kv or add_zero_attn is not supported; "
            "keep it float with QConfigMapping.set_module_name"
        )
    prefix = f"{path}." if path else ""
    if packed is not None:
        for parameter in ("in_proj_weight",) if module._qkv_same_embed_dim else _NOT_PACKED:
            fake_quant = placement.weight_fake_quant(module, f"{prefix}{parameter}", parameter, LINEAR, packed)
            add_weight_fake_quant(module, parameter, fake_quant)
        if packed.activation is not None:
            given = dict(zip(_INPUTS, call.args)) | call.kwargs
            for name in _INPUTS:
                add_submodule(
                    module, f"{name}_fake_quant", inputs.of(given[name], packed.activation, f"{prefix}{name}_fake_quant")
                )
    if output is not None:
        placement.quantize_weight(f"{prefix}out_proj", "weight", LINEAR, output)
        if output.activation is not None:
            inputs.quantize_input_of(f"{prefix}out_proj", module.out_proj, None, output.activation)
    extend(module, mixin=QuantizedAttention)
