"""Traces a model with torch.fx into a graph that follows train() and eval(), and turns such a graph back into a forward
function."""

import inspect
import math
import sys

import torch
import torch.utils.checkpoint
from torch import fx

from ..trees import leaves
from .example_run import evaluating, repeatable
from .patterns import compute_function, compute_layer
from .quantized_parameter import GraphForward


class Untraceable(Exception):
    """Why torch.fx cannot stand for this model. prepare then works module by module."""


def trace(model, run, args, kwargs):
    """A graph of `model` that computes what the example run computed; each node's meta["value"] describes what it gave."""
    fixed, graph_inputs = _split_arguments(model, args, kwargs)
    graph, constants = _trace_once(model, fixed, graph_inputs, training=False)
    training_graph, training_constants = _trace_once(model, fixed, graph_inputs, training=True)
    _follow_training(graph, training_graph)
    _keep_constants(model, constants, training_constants)
    _check_calls(graph, run)
    _check_output(model, graph, run, list(graph_inputs.values()))
    return graph


def module_path(node):
    """Path of the module whose forward made this node, "" for the root."""
    scopes = list(node.meta.get("nn_module_stack", {}).values())
    if node.op == "call_module" and scopes and scopes[-1][0] == node.target:
        scopes.pop()
    return scopes[-1][0] if scopes else ""


def select_by_mode(training, in_training, in_eval):
    """A constant that the model's forward chose by self.training."""
    return in_training if training else in_eval


def refuse_argument(name, fixed):
    raise ValueError(
        f"the model was prepared with {name}={fixed!r}, which decided what its forward does; "
        f"prepare it again with example_inputs that give {name} another value"
    )


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # a buffer that forward slices must stay a buffer, not become a constant

    def __init__(self, fixed, graph_inputs):
        super().__init__()
        self.fixed, self.graph_inputs = fixed, graph_inputs

    def is_leaf_module(self, module, path):
        if compute_layer(module) or super().is_leaf_module(module, path):
            return True
        if module._forward_hooks or module._forward_pre_hooks:
            raise Untraceable(f"{path!r} has forward hooks, which a traced graph would not call")
        return False

    def create_node(self, *args, **kwargs):
        if _inside_checkpoint():
            raise Untraceable("it uses torch.utils.checkpoint, which a traced graph would leave out")
        return super().create_node(*args, **kwargs)

    def create_args_for_root(self, forward, is_module, concrete_args=None):
        values = {name: self.create_proxy("placeholder", name, (), {}) for name in self.graph_inputs}
        values.update(self.fixed)
        positional, keywords = [], {}
        for parameter in _parameters(self.root):
            if parameter.kind is parameter.KEYWORD_ONLY:
                keywords[parameter.name] = values[parameter.name]
            else:
                positional.append(values[parameter.name])
        return lambda *arguments: forward(*arguments, **keywords), [self.root, *positional]


def _inside_checkpoint():
    """Whether torch.utils.checkpoint called what runs now."""
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_filename != torch.utils.checkpoint.__file__:
        frame = frame.f_back
    return frame is not None


def _parameters(model):
    """The parameters of forward, self and variadic ones left out."""
    parameters = list(inspect.signature(type(model).forward).parameters.values())[1:]
    return [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _split_arguments(model, args, kwargs):
    """(values that decide what forward does, tensors that flow through the graph), by name of forward's parameters."""
    if "forward" in vars(model):
        raise Untraceable("forward is set on the instance")
    bound = inspect.signature(type(model).forward).bind(model, *args, **kwargs)
    bound.apply_defaults()
    fixed, graph_inputs = {}, {}
    for parameter in _parameters(model):
        value = bound.arguments[parameter.name]
        if isinstance(value, torch.Tensor):
            graph_inputs[parameter.name] = value
        elif value is None or isinstance(value, (bool, int, float, str)):
            fixed[parameter.name] = value
        else:
            raise Untraceable(f"argument {parameter.name!r} is a {type(value).__name__}")
    variadic = {
        p.name
        for p in inspect.signature(type(model).forward).parameters.values()
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    if any(bound.arguments.get(name) for name in variadic):
        raise Untraceable("example_inputs use forward's variadic arguments")
    return fixed, graph_inputs


def _trace_once(model, fixed, graph_inputs, training):
    """(graph, the tensors that forward created while it was traced)."""
    tracer = _Tracer(fixed, graph_inputs)
    try:
        with evaluating(model, training), torch.no_grad(), repeatable():
            graph = tracer.trace(model)
    except Untraceable:
        raise
    except Exception as error:  # user code runs here on proxies: whatever it raises, it does not trace
        raise Untraceable(f"torch.fx: {error}".splitlines()[0]) from error
    finally:
        constants = {name: model.__dict__.pop(name) for name in list(vars(model)) if name.startswith("_tensor_constant")}
    return graph, constants


def _follow_training(graph, training_graph):
    """Where a constant of the eval graph is another one in train mode, lets the `training` of the module that chose it
    choose."""
    nodes, training_nodes = list(graph.nodes), list(training_graph.nodes)
    if [(n.op, str(n.target)) for n in nodes] != [(n.op, str(n.target)) for n in training_nodes]:
        raise Untraceable("it computes something else in train mode than in eval mode")
    twin = dict(zip(training_nodes, nodes, strict=True))

    def merge(node, in_eval, in_training):
        if isinstance(in_eval, fx.Node):
            if twin.get(in_training) is not in_eval:
                raise Untraceable("it computes something else in train mode than in eval mode")
            return in_eval
        if type(in_eval) is type(in_training):
            if isinstance(in_eval, (tuple, list)) and len(in_eval) == len(in_training):
                return type(in_eval)(merge(node, *pair) for pair in zip(in_eval, in_training))
            if isinstance(in_eval, dict) and in_eval.keys() == in_training.keys():
                return {key: merge(node, in_eval[key], in_training[key]) for key in in_eval}
            if isinstance(in_eval, slice):
                return slice(*(merge(node, getattr(in_eval, name), getattr(in_training, name)) for name in ("start", "stop", "step")))
        if in_eval == in_training:
            return in_eval
        with graph.inserting_before(node):
            owner = module_path(node)
            training = graph.create_node("get_attr", f"{owner}.training" if owner else "training")
            if (in_eval, in_training) == (False, True):
                return training
            return graph.call_function(select_by_mode, (training, in_training, in_eval))

    for training_node, node in twin.items():
        args = tuple(merge(node, *pair) for pair in _pairs(node.args, training_node.args))
        if node.kwargs.keys() != training_node.kwargs.keys():
            raise Untraceable("it computes something else in train mode than in eval mode")
        kwargs = {key: merge(node, node.kwargs[key], training_node.kwargs[key]) for key in node.kwargs}
        node.args, node.kwargs = args, kwargs


def _pairs(ours, theirs):
    if len(ours) != len(theirs):
        raise Untraceable("it computes something else in train mode than in eval mode")
    return zip(ours, theirs)


def _keep_constants(model, constants, training_constants):
    """Makes buffers of the tensors that forward creates, so that they move with the model."""
    if not all(torch.equal(value, training_constants[name]) for name, value in constants.items()):
        raise Untraceable("it creates a tensor that is another one each time")
    for name, value in constants.items():
        model.register_buffer(name, value, persistent=False)


def _check_calls(graph, run):
    """Refuses a graph that keeps a function whole in which layers run, for they would get no fake-quant."""
    leaves = {node.target for node in graph.nodes if node.op == "call_module"}

    def in_leaf(path):
        return any(path == leaf or path.startswith(f"{leaf}.") for leaf in leaves)

    for call in run.calls:
        if compute_layer(call.module) and call.path and not in_leaf(call.path):
            raise Untraceable(f"the traced graph hides the call of {call.path!r}")
    functional = [node for node in graph.nodes if node.op in ("call_function", "call_method") and compute_function(node.target)]
    read = {argument.target for node in functional for argument in node.all_input_nodes}
    for call in run.functional_calls:
        if not in_leaf(call.caller) and call.path not in read:
            raise Untraceable(f"the traced graph hides a functional call on {call.path!r}")


def _check_output(model, graph, run, values):
    """Runs the graph: code that asked whether its input is a Tensor went another way when it was traced."""
    recorder = _Values(model, graph=graph)
    with evaluating(model), torch.no_grad(), repeatable():
        output = recorder.run(*values)
    ours, theirs = list(leaves(output)), list(leaves(run.output))
    if len(ours) != len(theirs) or not all(_same(*pair) for pair in zip(ours, theirs)):
        raise Untraceable("the traced graph computes something else than the model")


class _Values(fx.Interpreter):
    def run_node(self, node):
        value = super().run_node(node)
        node.meta["value"] = torch.empty_like(value, device="meta") if isinstance(value, torch.Tensor) else value
        return value


def _same(ours, theirs):
    if not isinstance(theirs, torch.Tensor) or not isinstance(ours, torch.Tensor):
        return ours is theirs or ours == theirs or (isinstance(ours, float) and math.isclose(ours, theirs))
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    return (
        torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)
        if ours.is_floating_point()
        else torch.equal(ours, theirs)
    )


def forward_of(graph, model, args, kwargs):
    """The graph as a forward with the signature of the model's own."""
    fixed, _ = _split_arguments(model, args, kwargs)
    code = graph.python_code("self")
    body = code.src[code.src.index("def forward(") :].split("\n", 1)[1]
    names = dict(code.globals)
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for parameter in _parameters(model):
        default = parameter.default
        if default is not parameter.empty and not isinstance(default, (bool, int, float, str, type(None))):
            names[f"_default_{parameter.name}"] = default
            default = _Name(f"_default_{parameter.name}")
        parameters.append(parameter.replace(annotation=parameter.empty, default=default))
    header = f"def forward{inspect.Signature(parameters)}:\n"
    for name, value in fixed.items():
        names["_refuse_argument"] = refuse_argument
        test = f"{name} is not {value!r}" if value is None else f"{name} is None or {name} != {value!r}"
        header += f"    if {test}: _refuse_argument({name!r}, {value!r})\n"
    return GraphForward(header + body, names)


class _Name(str):
    __repr__ = str.__str__
