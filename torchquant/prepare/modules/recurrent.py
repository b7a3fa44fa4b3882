"""nn.LSTM and nn.GRU as linear layers and a loop over time.

torch runs them as one fused function of all weights. Here each direction of each layer is one product over the whole
sequence for the inputs and one per step for the hidden state, both ordinary quantized linear layers. Activations are
quantized per row as they come (their range changes at every step, so a fixed one would have to fit all). The loop is
plain Python for training and torch.compile, and the same code as a scripted function while torch.jit.trace runs, so
that the trace holds a loop over whatever length it is given.
"""

import functools
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ...qconfigs import int8_dynamic
from ..patterns import INTEGER_MODES, ComputeLayer
from ..placement import LayerSettings
from ..quantized_parameter import (
    add_submodule,
    extend,
    recipe_of,
    weight_fake_quant_name,
)

def _per_row(hidden: Tensor, quant_min: int, quant_max: int) -> Tensor:
    if quant_min == quant_max:  # no fake-quant
        return hidden
    scale, zero_point = torch.ops.torchquant.choose_qparams(
        hidden, axis=-1, group_size=hidden.size(-1), symmetric=True, quant_min=quant_min, quant_max=quant_max
    )
    return torch.ops.torchquant.fake_quantize(
        hidden, scale, zero_point, axis=-1, group_size=hidden.size(-1), quant_min=quant_min, quant_max=quant_max
    )


def _lstm_loop(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    backwards: bool,
    quant_min: int,
    quant_max: int,
):
    outputs: list[Tensor] = []
    length = inputs.size(0)
    for i in range(length):
        step = length - 1 - i if backwards else i
        gates = inputs[step] + F.linear(_per_row(hidden, quant_min, quant_max), weight, bias)
        take, forget, new, give = gates.chunk(4, -1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(take) * torch.tanh(new)
        hidden = torch.sigmoid(give) * torch.tanh(cell)
        outputs.append(hidden)
    if backwards:
        outputs.reverse()
    return torch.stack(outputs), hidden, cell


def _gru_loop(
    inputs: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, backwards: bool, quant_min: int, quant_max: int
):
    outputs: list[Tensor] = []
    length = inputs.size(0)
    for i in range(length):
        step = length - 1 - i if backwards else i
        reset, update, new = inputs[step].chunk(3, -1)
        hidden_reset, hidden_update, hidden_new = F.linear(_per_row(hidden, quant_min, quant_max), weight, bias).chunk(3, -1)
        new = torch.tanh(new + torch.sigmoid(reset + hidden_reset) * hidden_new)
        hidden = new + torch.sigmoid(update + hidden_update) * (hidden - new)
        outputs.append(hidden)
    if backwards:
        outputs.reverse()
    return torch.stack(outputs), hidden


@functools.cache
def _scripted(loop):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of TorchScript here; the user did not call it
        return torch.jit.script(loop)


class _QuantizedRecurrent(nn.Module):
    def forward(self, input, hx=None):
        if isinstance(input, PackedSequence):
            raise TypeError(
                f"{recipe_of(self).base.__name__}: a quantized recurrent layer takes padded tensors, got a PackedSequence"
            )
        batched = input.dim() == 3
        if input.dim() not in (2, 3):
            raise ValueError(f"{recipe_of(self).base.__name__}: input must be 2-D or 3-D, got {input.dim()}-D")
        x = (input.transpose(0, 1) if self.batch_first else input) if batched else input.unsqueeze(1)
        states = self._initial_states(x, hx, batched)
        directions = 2 if self.bidirectional else 1
        last = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                index = layer * directions + direction
                output, *state = self._run_direction(x, [state[index] for state in states], layer, direction)
                outputs.append(output)
                last.append(state)
            x = torch.cat(outputs, -1) if directions == 2 else outputs[0]
            if layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        final = [torch.stack(state) for state in zip(*last)]
        if not batched:
            return x.squeeze(1), self._states_out([state.squeeze(1) for state in final])
        return x.transpose(0, 1) if self.batch_first else x, self._states_out(final)

    def _initial_states(self, x, hx, batched):
        if hx is None:
            layers = self.num_layers * (2 if self.bidirectional else 1)
            zeros = torch.zeros(layers, x.size(1), self.hidden_size, dtype=x.dtype, device=x.device)
            return [zeros] * self.states
        given = list(hx) if self.states == 2 else [hx]
        return given if batched else [state.unsqueeze(1) for state in given]

    def _states_out(self, states):
        return tuple(states) if self.states == 2 else states[0]

    def _run_direction(self, x, states, layer, direction):
        suffix = f"_l{layer}" + ("_reverse" if direction else "")
        fake_quant = self._modules.get("activation_fake_quant")
        inputs = F.linear(
            x if fake_quant is None else fake_quant(x), self._weight(f"weight_ih{suffix}"), self._bias(f"bias_ih{suffix}")
        )
        quant_min, quant_max = 0, 0
        if fake_quant is not None and fake_quant.fake_quant_enabled:
            quant_min, quant_max = fake_quant.spec.quant_min, fake_quant.spec.quant_max
        loop = _scripted(self.loop) if torch.jit.is_tracing() else self.loop
        return loop(
            inputs,
            *states,
            self._weight(f"weight_hh{suffix}"),
            self._bias(f"bias_hh{suffix}"),
            bool(direction),
            quant_min,
            quant_max,
        )

    def _weight(self, name):
        # not by a property: torch's own RNN modules keep a list of what getattr gives for their weights
        return self._modules[weight_fake_quant_name(name)](getattr(self, name))

    def _bias(self, name):
        return getattr(self, name) if self.bias else None


class QuantizedLSTM(_QuantizedRecurrent):
    states = 2
    loop = staticmethod(_lstm_loop)


class QuantizedGRU(_QuantizedRecurrent):
    states = 1
    loop = staticmethod(_gru_loop)


def _weight_names(module):
    directions = ("", "_reverse") if module.bidirectional else ("",)
    return [
        f"weight_{of}_l{layer}{direction}"
        for layer in range(module.num_layers)
        for direction in directions
        for of in ("ih", "hh")
    ]


def place(placement, path, module, call):
    """Quantizes the LSTM or GRU at `path`."""
    kind = "lstm" if isinstance(module, nn.LSTM) else "gru"
    if call is None:
        placement.report.add(path, "layer", None, "example_inputs do not reach it")
        return
    layer = ComputeLayer(kind, 0, INTEGER_MODES)
    settings = placement.settings(path, layer)
    if settings is None:
        return
    if module.proj_size:
        raise ValueError(
            f"prepare: {path or 'the model'}: an LSTM with proj_size is not supported; keep it float with QConfigMapping.set_module_name"
        )
    activation = settings.activation
    if settings.mode == "static":
        activation = int8_dynamic().activation
        settings = LayerSettings("dynamic", activation, settings.weight)
    prefix = f"{path}." if path else ""
    for name in _weight_names(module):
        fake_quant = placement.weight_fake_quant(module, f"{prefix}{name}", name, layer, settings)
        add_submodule(module, weight_fake_quant_name(name), fake_quant)
    if activation is not None:
        add_submodule(module, "activation_fake_quant", placement.new_activation(activation))
        name = f"{prefix}activation_fake_quant"
        placement.report.add(name, "activation", name, f"inputs and hidden state of {kind}, per row at run time")
    extend(module, mixin=QuantizedLSTM if kind == "lstm" else QuantizedGRU)
