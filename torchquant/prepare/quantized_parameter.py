"""Swaps the class of a module for a cached subclass of it, the one way in which prepare changes what a module does.

The subclass keeps the user's class as its base, so isinstance, attributes, methods and hyper-parameters stay as they
are, and the parameters stay where they were, so the float model's state_dict loads. What a subclass adds is written in
its Recipe: parameters that read as their fake-quantized value, behaviour from mixins, a forward generated from a traced
graph. A class made at run time cannot be imported by name; instances are therefore pickled as their recipe and rebuilt
from it.
"""

import importlib
import linecache
import pickle
import types
import weakref
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..fake_quantize import FakeQuantize


class GraphForward:
    """A forward function made from generated source, and the names that the source reads."""

    def __init__(self, source, names):
        self.source, self.names = source, names
        filename = f"<torchquant graph {id(self)}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)  # tracebacks show the line
        weakref.finalize(self, linecache.cache.pop, filename, None)
        scope = dict(names)
        exec(compile(source, filename, "exec"), scope)
        self.function = scope["forward"]

    def __deepcopy__(self, memo):
        return self  # nothing here changes, and the modules among its names cannot be copied

    def __reduce__(self):
        modules = {name: value.__name__ for name, value in self.names.items() if isinstance(value, types.ModuleType)}
        others = {name: value for name, value in self.names.items() if name not in modules}
        return _load_graph_forward, (self.source, modules, others)


def _load_graph_forward(source, modules, others):
    return GraphForward(source, {**{name: importlib.import_module(path) for name, path in modules.items()}, **others})


@dataclass(frozen=True)
class Recipe:
    """What a prepared class adds to the user's class `base`."""

    base: type
    mixins: tuple[type, ...] = ()
    parameters: tuple[str, ...] = ()  # read as their fake-quantized value
    marked: tuple[str, ...] = ()  # of those, the ones that carry their input's fake-quant to a functional call
    graph: GraphForward | None = None


_classes = weakref.WeakValueDictionary()  # Recipe -> class; it goes when the last model that uses it goes


def recipe_of(module):
    """The recipe of a prepared module, None for any other."""
    return getattr(type(module), "_torchquant_recipe", None)


def extend(module, *, mixin=None, parameter=None, marked=False, graph=None):
    """Adds one thing to what the module's class does. Adding the same thing twice changes nothing."""
    recipe = recipe_of(module) or Recipe(type(module))
    if mixin is not None and mixin not in recipe.mixins:
        recipe = replace(recipe, mixins=(mixin, *recipe.mixins))
    if parameter is not None and parameter not in recipe.parameters:
        recipe = replace(recipe, parameters=(*recipe.parameters, parameter))
    if marked and parameter not in recipe.marked:
        recipe = replace(recipe, marked=(*recipe.marked, parameter))
    if graph is not None:
        recipe = replace(recipe, graph=graph)
    module.__class__ = _class_of(recipe)


def withdraw(module, mixin):
    """Takes a mixin away again."""
    recipe = recipe_of(module)
    recipe = replace(recipe, mixins=tuple(other for other in recipe.mixins if other is not mixin))
    plain = recipe == Recipe(recipe.base)
    module.__class__ = recipe.base if plain else _class_of(recipe)


def _class_of(recipe):
    cls = _classes.get(recipe)
    if cls is None:
        cls = _classes[recipe] = _make_class(recipe)
    return cls


def _make_class(recipe):
    base = recipe.base
    properties = {name: _quantized_parameter(base, name, name in recipe.marked) for name in recipe.parameters}
    mixed_in = {name for mixin in recipe.mixins for name, value in vars(mixin).items() if isinstance(value, property)}
    members = {
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        "__reduce_ex__": _reduce_ex,
        "__prepare_scriptable__": _refuse_scripting,
        # torch.jit.trace compiles every property that is not on this list
        "__jit_unused_properties__": [*getattr(base, "__jit_unused_properties__", ()), *properties, *mixed_in],
        "_torchquant_recipe": recipe,
        **properties,
    }
    if recipe.parameters:
        members["register_parameter"] = _register_parameter
    if recipe.graph is not None:
        members["forward"] = recipe.graph.function
    return types.new_class(
        f"Prepared{base.__name__}", (*recipe.mixins, base), exec_body=lambda namespace: namespace.update(members)
    )


def _quantized_parameter(base, name, marked):
    """The property that stands where the parameter `name` is read."""
    parametrized = getattr(base, name, None)  # torch.nn.utils.parametrize keeps such a parameter behind a property of its own
    parametrized = parametrized if isinstance(parametrized, property) else None
    fake_quant, input_fake_quant = weight_fake_quant_name(name), functional_input_name(name)

    def read(self):
        value = parametrized.fget(self) if parametrized else self._parameters[name]
        if type(value).__name__ == "DTensor":  # a shard, for which only fully_shard itself asks
            return value
        return self._modules[fake_quant](value)

    def read_marked(self):
        value = read(self)
        if value is self._parameters.get(name):
            value = value.view_as(value)  # the mark must not stay on the parameter itself
        value.torchquant_input = self._modules[input_fake_quant]
        return value

    def refuse(self, value):
        raise AttributeError(
            f"{base.__name__}.{name} is fake-quantized and can only be assigned an nn.Parameter. (FullyShardedDataParallel puts views in "
            "its place; shard with torch.distributed.fsdp.fully_shard instead.)"
        )

    return property(read_marked if marked else read, parametrized.fset if parametrized else refuse)


def weight_fake_quant_name(parameter):
    return f"{parameter}_fake_quant"


def float_parameter(module, name):
    """The parameter `name` of a prepared module as the optimizer holds it, in float.

    On a prepared model `module.weight` reads as a fake-quantized copy: writing into it or asking for its `.grad` leaves the
    parameter alone. Write to, prune or inspect `float_parameter(module, "weight")`. (A parametrized parameter has its
    originals in `module.parametrizations`; this gives the value that they make.)
    """
    recipe = recipe_of(module)
    parametrized = getattr(recipe.base if recipe else type(module), name, None)
    if isinstance(parametrized, property):
        return parametrized.fget(module)
    if name not in module._parameters:
        raise AttributeError(f"float_parameter: {type(module).__name__} has no parameter {name!r}")
    return module._parameters[name]


def weight_fake_quants(model):
    """(module, parameter name, fake-quant) for every fake-quantized parameter."""
    suffix = weight_fake_quant_name("")
    for module in model.modules():
        for name, child in module._modules.items():
            parameter = name.removesuffix(suffix)
            quantizes = isinstance(child, FakeQuantize) and name != parameter
            if quantizes and (parameter in module._parameters or (recipe_of(module) and parameter in recipe_of(module).parameters)):
                yield module, parameter, child


def functional_input_name(parameter):
    """The fake-quant on the input of functional calls on a parameter, where no graph holds it."""
    return f"{parameter}_input_fake_quant"


def add_weight_fake_quant(module, parameter, fake_quant: FakeQuantize):
    """Makes `module.<parameter>` read as its fake-quantized value, here and in every forward that reads it."""
    add_submodule(module, weight_fake_quant_name(parameter), fake_quant)
    extend(module, parameter=parameter)


def add_submodule(module, name, child):
    """Registers a fake-quant. (Plain add_module asks hasattr, which would run a parameter's property.)"""
    if name in module._modules or name in module.__dict__:
        raise ValueError(
            f"prepare: {type(module).__name__} already has an attribute named {name!r}, which TorchQuant needs for a fake-quant"
        )
    nn.Module.__setattr__(module, name, child)


def _reduce_ex(self, protocol):
    recipe = recipe_of(self)
    _, arguments, *rest = super(_class_of(recipe), self).__reduce_ex__(protocol)
    if not arguments or arguments[0] is not type(self):
        raise pickle.PicklingError(
            f"{recipe.base.__qualname__} defines its own pickling, which a prepared model cannot follow; save its state_dict()"
        )
    return (_rebuild, (recipe, *arguments[1:]), *rest)


def _rebuild(recipe, *arguments):
    cls = _class_of(recipe)
    return cls.__new__(cls, *arguments)


def _register_parameter(self, name, param):
    """torch.nn.utils.prune and its like make a new parameter of what they read, which here is a fake-quantized copy."""
    if isinstance(param, torch.Tensor) and not isinstance(param, nn.Parameter):
        raise TypeError(
            f"{recipe_of(self).base.__name__}.{name}: a fake-quantized value cannot become a parameter; change (prune, parametrize) "
            "the float model before prepare, or write to torchquant.float_parameter(module, name)"
        )
    super(_class_of(recipe_of(self)), self).register_parameter(name, param)


def _refuse_scripting(self):
    raise RuntimeError(
        f"torch.jit.script would read the float weights of the prepared {recipe_of(self).base.__name__} past their fake-quants; "
        "use torch.jit.trace or torchquant.convert"
    )
