"""Places fake-quants in a traced graph: on the input of every quantized compute layer and on the output of every fused
group.

A value that an integer kernel produces and another one reads gets one fake-quant, which all its readers share. A value
that only float operations read, and the model's output, gets none. Float operations that read the same value as a
quantized layer keep reading the float one if a float operation produced it: a residual stream stays as precise as it
was.

The rules in terms of the graph:
- A compute layer opens a group; batch norm, one residual add and one activation join it, as long as each value in
  between has one reader.
- A matrix product of two activations that the QConfigMapping asks for reads both as integers.
- A batch norm that joins no group opens one of its own where it reads integers.
- Adds, products, pools, concatenations, functions of one tensor and shape operations compute on integers if an input comes from
  integers and their own output is wanted as integers. Everything else is float.
- Shape operations and concatenations pass qparams through, so what they read carries the fake-quant and all inputs of a
  concatenation share it.
"""

import re
from dataclasses import replace

import torch
from torch import fx, nn

from . import module_placement
from .fx_trace import module_path
from .patterns import (
    COMPUTE_FUNCTIONS,
    Kind,
    averages_space,
    compute_function,
    compute_layer,
    is_matrices,
    is_matrix_layer,
    kind_of_function,
    kind_of_method,
    kind_of_module,
    operand,
    product_operands,
)
from .quantized_parameter import add_submodule

CONTAINER = "activation_fake_quants"
_PASSES_QPARAMS = (Kind.SHAPE, Kind.CONCAT, Kind.IDENTITY)
_FOLLOWS_ITS_INPUT = (Kind.ACTIVATION, Kind.TABLE, Kind.POOL, *_PASSES_QPARAMS)  # integers in, integers out
# how far a fused group has come: what may still join it
_COMPUTED, _NORMALIZED, _ADDED = range(3)


def place(placement, graph, run):
    """Adds weight fake-quants to the model's layers and activation fake-quants to the graph and the model's
    `activation_fake_quants`.
    """
    _Placer(placement, graph, run).place()


class _Placer:
    def __init__(self, placement, graph, run):
        self.placement, self.graph, self.run, self.model = placement, graph, run, placement.model
        self.nodes = list(graph.nodes)
        self.kinds = {}
        self.settings = {}  # compute node -> how it runs, None for float
        self.products = {}  # matrix product of two activations -> the spec in which it reads them
        self.stage = {}  # node -> how far its group has come; absent where nothing can join
        self.fused = {}  # node -> its only reader, which the same kernel runs
        self.integer = set()  # nodes whose value an integer kernel can produce
        self.wanted = {}  # node -> {spec in which integer kernels read it: those readers}
        self.names = {}  # node -> its name before and after it was made unique
        self.shares_with = {}  # node -> a node whose fake-quant it shares, because they are concatenated

    def place(self):
        for node in self.nodes:
            self.kinds[node] = self._kind(node)
        for node in self.nodes:
            if self.kinds[node] is Kind.COMPUTE:
                self.settings[node] = self._quantize_layer(node)
            elif node.op == "call_module":
                module_placement.place(self.placement, self.run, scope=node.target)
        for node in self.nodes:
            self._join(node)
        for node in reversed(self.nodes):
            self.wanted[node] = self._integer_readers(node)
        for node in self.nodes:
            self._share_concatenated(node)
        self._emit()

    # What each node is

    def _kind(self, node):
        if node.op == "call_module":
            kind = kind_of_module(self.model.get_submodule(node.target))
        elif node.op == "call_function":
            kind = kind_of_function(node.target, node.args, node.kwargs)
        elif node.op == "call_method":
            kind = kind_of_method(node.target, node.kwargs)
        else:
            return Kind.FLOAT
        if self._is_matrix_layer(node):
            return Kind.COMPUTE
        if spec := self._product_spec(node):
            self.products[node] = spec
            self.placement.quantize_product()
            return Kind.MATMUL
        if kind in (Kind.FLOAT, Kind.METADATA, Kind.COMPUTE):
            return kind
        return self._kind_in_use(node, kind)

    def _kind_in_use(self, node, kind):
        inputs = _inputs(node, kind)
        if not inputs or not all(_holds_tensors(x) for x in inputs):
            return Kind.METADATA if not _holds_tensors(node) else Kind.FLOAT  # arithmetic on sizes or with a number
        if kind in (Kind.ADD, Kind.MUL) and len(inputs) != 2:
            return Kind.FLOAT
        if kind is Kind.ADD and self._adds_bias(*inputs):
            return Kind.NORM  # joins the product's group in the same way
        if node.target in ("mean", torch.mean):
            dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
            return kind if averages_space(dims, inputs[0].meta["value"].dim()) else Kind.FLOAT
        indices = [x for x in node.all_input_nodes if x not in inputs and isinstance(x.meta.get("value"), torch.Tensor)]
        return Kind.FLOAT if indices else kind  # indexing by a tensor is a gather

    def _is_matrix_layer(self, node):
        if node.op not in ("call_function", "call_method") or node.target in COMPUTE_FUNCTIONS or not compute_function(node.target):
            return False
        weight = self._parameter(operand(node.args, node.kwargs, compute_function(node.target).weight))
        return weight is not None and is_matrix_layer(node.target, node.args, node.kwargs, weight)

    def _product_spec(self, node):
        """How a matrix product of two activations is to read them, None where it stays float and for anything else."""
        operands = product_operands(node.target, node.args, node.kwargs) if node.op in ("call_function", "call_method") else None
        if not operands or not all(isinstance(x, fx.Node) and x.op != "get_attr" for x in operands):
            return None
        matrices = all(is_matrices(x.meta.get("value")) for x in operands)
        return self.placement.product_spec(module_path(node)) if matrices else None

    def _adds_bias(self, product, bias):
        """Whether this is x @ weight + bias, which the converter runs as one layer."""
        bias = self._parameter(bias)
        return self._is_matrix_layer(product) and bias is not None and bias.shape == product.meta["value"].shape[-1:]

    def _parameter(self, node):
        """The parameter that a node reads, None for any other value."""
        if getattr(node, "op", None) != "get_attr":
            return None
        path, _, name = node.target.rpartition(".")
        return self.model.get_submodule(path)._parameters.get(name)

    def _quantize_layer(self, node):
        if node.op == "call_module":
            path, parameter, layer = node.target, "weight", compute_layer(self.model.get_submodule(node.target))
        else:
            compute = compute_function(node.target)
            layer, weight = compute.layer, operand(node.args, node.kwargs, compute.weight)
            if self._parameter(weight) is None:
                return None  # the example run has reported it
            path, _, parameter = weight.target.rpartition(".")
        settings = self.placement.settings(path, layer)
        if settings is not None:
            self.placement.quantize_weight(path, parameter, layer, settings)
        return settings

    # Which nodes one kernel runs together

    def _join(self, node):
        kind, inputs = self.kinds[node], _inputs(node, self.kinds[node])
        if kind is Kind.COMPUTE:
            if self._mode(node) == "static":
                self.integer.add(node)
                self.stage[node] = _COMPUTED
        elif kind is Kind.MATMUL:
            self.integer.add(node)
            self.stage[node] = _ADDED  # only an activation may follow in its kernel
        elif kind is Kind.NORM:
            if not self._fuse(inputs[0], node, upto=_COMPUTED, then=_NORMALIZED) and self._normalizes_alone(node, inputs[0]):
                self.integer.add(node)
                self.stage[node] = _NORMALIZED
        elif kind is Kind.IDENTITY:
            self._fuse(inputs[0], node, upto=_ADDED, then=self.stage.get(inputs[0]))
        elif kind is Kind.ACTIVATION:
            self._fuse(inputs[0], node, upto=_ADDED, then=None)
        elif kind in (Kind.ADD, Kind.MUL):
            if any(x in self.integer for x in inputs):
                self.integer.add(node)
                self.stage[node] = _ADDED
                if kind is Kind.ADD:
                    self._join_sum(node, inputs)
        if kind in _FOLLOWS_ITS_INPUT and any(x in self.integer for x in inputs):
            self.integer.add(node)

    def _fuse(self, node, reader, upto, then):
        """Lets `reader` join the group that ends in `node`, if that has come no further than `upto` and nothing else
        reads `node`.
        """
        readers = [user for user in node.users if self.kinds[user] is not Kind.METADATA]
        alone = readers == [reader] and _inputs(reader, self.kinds[reader]).count(node) == 1
        if not alone or self.stage.get(node, _ADDED + 1) > upto:
            return False
        self.fused[node] = reader
        self.integer.add(reader)
        if then is not None:
            self.stage[reader] = then
        return True

    def _normalizes_alone(self, node, data):
        """Whether a batch norm that no layer takes in has a kernel: of images and sequences, by statistics that it keeps."""
        module = self.model.get_submodule(node.target) if node.op == "call_module" else None
        keeps = getattr(module, "running_mean", None) is not None
        return data in self.integer and keeps and data.meta["value"].dim() in (3, 4)

    def _join_sum(self, node, operands):
        """A sum joins the group of one term; the other one is its residual."""
        for term in operands:
            same_shape = term.meta["value"].shape == node.meta["value"].shape
            if same_shape and self._fuse(term, node, upto=_NORMALIZED, then=_ADDED):
                return

    def _group_end(self, node):
        while node in self.fused:
            node = self.fused[node]
        return node

    # Which values integer kernels read

    def _integer_readers(self, node):
        readers = {}
        for user in node.users:
            spec = self._reads_as(user, node)
            if spec is not None:
                readers.setdefault(spec, []).append(user)
        return readers

    def _reads_as(self, user, node):
        """The spec of the codes that `user` reads `node` as, None if it reads floats."""
        if self.kinds[user] is Kind.COMPUTE:
            data = _data(user)
            return self.settings[user].activation if self._mode(user) == "static" and data is node else None
        if self.kinds[user] is Kind.MATMUL:
            return self.products[user] if node in _inputs(user, Kind.MATMUL) else None
        if self.fused.get(node) is user or user not in self.integer or node not in _inputs(user, self.kinds[user]):
            return None
        return next(iter(self.wanted[self._group_end(user)]), None)

    def _mode(self, node):
        settings = self.settings[node]
        return settings.mode if settings else "float"

    # Concatenations

    def _passes_qparams(self, node):
        """Whether a node's value has the qparams of what it reads, so that the fake-quant belongs there."""
        return node in self.integer and self.kinds[node] in _PASSES_QPARAMS and node not in self.stage

    def _share_concatenated(self, node):
        if self.kinds[node] is Kind.CONCAT and self._passes_qparams(node) and self.wanted[node]:
            sources = [source for x in _inputs(node, Kind.CONCAT) for source in self._sources(x)]
            for source in sources[1:]:
                self.shares_with.setdefault(self._share_root(source), self._share_root(sources[0]))

    def _sources(self, node):
        if not self._passes_qparams(node):
            return [node]
        return [source for x in _inputs(node, self.kinds[node]) for source in self._sources(x)]

    def _share_root(self, node):
        while self.shares_with.get(node, node) is not node:
            node = self.shares_with[node]
        return node

    # The fake-quants themselves

    def _emit(self):
        container, made = FakeQuants(), {}
        for node in self.nodes:
            if not self._passes_qparams(node):
                self._emit_static(node, container, made)
        for node in self.nodes:
            if self.kinds[node] is Kind.COMPUTE and self._mode(node) in ("dynamic", "fp8"):
                data, spec = _data(node), self.settings[node].activation
                if (data, spec) not in made:
                    made[data, spec] = self._insert(data, self._add(container, data, spec))
                    self._report(made[data, spec], data, [user for user in data.users if self._reads_dynamic(user, data, spec)])
                node.replace_input_with(data, made[data, spec])
        if container._modules:
            add_submodule(self.model, CONTAINER, container)

    def _reads_dynamic(self, user, data, spec):
        settings = self.settings.get(user)
        return settings is not None and settings.activation == spec and _data(user) is data

    def _emit_static(self, node, container, made):
        wanted = self.wanted[node]
        readers = [user for user in node.users if self.kinds[user] is not Kind.METADATA]
        for spec, integer_readers in wanted.items():
            key = self._share_root(node), spec
            if key not in made:
                made[key] = self._add(container, node, self._spec_when_shared(node, spec))
            fake_quant = self._insert(node, made[key])
            self._report(fake_quant, node, integer_readers)
            if node in self.integer and spec is next(iter(wanted)):
                others = [user for specs in wanted.values() for user in specs if user not in integer_readers]
                integer_readers = [user for user in readers if user not in others]  # floats read what the kernel stores
            for user in integer_readers:
                user.replace_input_with(node, fake_quant)
        if not wanted and node in self.integer and node not in self.fused:
            is_output = any(user.op == "output" for user in readers)
            reason = "it is the model's output" if is_output else "only float operations read it"
            self.placement.report.add(self._describe(node), "activation", None, reason)

    def _spec_when_shared(self, node, spec):
        """A moving average over several tensors would settle between their ranges and cut the widest one."""
        members = {*self.shares_with, *self.shares_with.values()}
        shared = sum(self._share_root(member) is self._share_root(node) for member in members) > 1
        return replace(spec, observer="min_max", delayed=False) if shared and spec.observer == "moving_average" else spec

    def _add(self, container, node, spec):
        name = re.sub(r"\W", "_", self._describe(node))
        while hasattr(container, name) or not name.isidentifier():  # "type" and "half" are taken: they are methods of a module
            name = f"value_{name}"
        add_submodule(container, name, self.placement.new_activation(spec))
        return f"{CONTAINER}.{name}"

    def _insert(self, node, target):
        place = [n for n in self.nodes if n.op == "placeholder"][-1] if node.op == "placeholder" else node
        with self.graph.inserting_after(place):
            return self.graph.call_module(target, (node,))

    def _report(self, fake_quant, node, readers):
        names = ", ".join(dict.fromkeys(self._describe(user) for user in readers))
        self.placement.report.add(self._describe(node), "activation", fake_quant.target, f"read by {names}")

    def _describe(self, node):
        """A unique name for what a node gives: the path of the layer, or the operation's name below the path of the
        module that ran it.
        """
        if node not in self.names:
            named = node.op in ("call_module", "get_attr", "placeholder")
            name = node.target if named else f"{module_path(node)}.{_operation(node)}".lstrip(".")
            taken = sum(stem == name for stem, _ in self.names.values())
            self.names[node] = name, f"{name}#{taken + 1}" if taken else name
        return self.names[node][1]


class FakeQuants(nn.Module):
    """Holds the activation fake-quants that a traced graph calls."""


def _operation(node):
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)


def _argument(node, position, name):
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)


def _data(node):
    """What a compute node reads besides its weight."""
    compute = compute_function(node.target) if node.op != "call_module" else None
    return operand(node.args, node.kwargs, compute.input if compute else (0, "input"))


def _inputs(node, kind):
    """The nodes whose values an operation works on (not the sizes and weights that it also reads)."""
    if kind in (Kind.FLOAT, Kind.METADATA):
        return []
    if kind is Kind.CONCAT:
        given = _argument(node, 0, "tensors")
    elif kind is Kind.MATMUL:
        given = product_operands(node.target, node.args, node.kwargs)
    elif kind in (Kind.ADD, Kind.MUL):
        given = (_argument(node, 0, "input"), _argument(node, 1, "other"))
    else:
        given = (_argument(node, 0, "input"),)
    return [x for x in given if isinstance(x, fx.Node)] if isinstance(given, (tuple, list)) else []


def _holds_tensors(node):
    value = node.meta.get("value")
    if isinstance(value, (tuple, list)):
        return bool(value) and all(isinstance(x, torch.Tensor) and x.is_floating_point() for x in value)
    return isinstance(value, torch.Tensor) and value.is_floating_point()
