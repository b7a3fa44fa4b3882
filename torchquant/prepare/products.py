"""Fake-quantizes both operands of the matrix products of two activations that a module's forward computes, where no traced graph
holds them. Called by module_placement for models whose QConfigMapping asks for products.

A product is known by its place among those of one forward: nothing else tells one call of torch.matmul from another.
"""

import threading

from torch import nn
from torch.overrides import TorchFunctionMode

from ..not_compiled import not_compiled
from .modules.attention import QuantizedAttention
from .patterns import product_operands, with_product_operands
from .quantized_parameter import add_submodule, extend

CONTAINER = "matmul_fake_quants"


class ProductFakeQuants(nn.Module):
    """The fake-quants of a module's products: "input_0" and "other_0" for the first of `count`, and so on; a product without them
    stays float."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def of(self, index):
        """(of the left operand, of the right one), None for a product that stays float."""
        if f"input_{index}" not in self._modules:
            return None
        return self._modules[f"input_{index}"], self._modules[f"other_{index}"]


class QuantizedProducts(nn.Module):
    """Mixed into a module whose forward computes products of activations."""

    @not_compiled
    def forward(self, *args, **kwargs):
        with _FakeQuantizeOperands(self) as products:
            result = super().forward(*args, **kwargs)
        products.check_all_ran()
        return result


class _Handling(threading.local):
    active = False  # a mode further in has taken the product: it is not one of the modules around


_handling = _Handling()


class _FakeQuantizeOperands(TorchFunctionMode):
    def __init__(self, module):
        super().__init__()
        self.module, self.index = module, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        operands = product_operands(function, args, kwargs)
        if operands is None or _handling.active:
            return function(*args, **kwargs)
        fake_quants = self._next_fake_quants()
        if fake_quants:
            values = [fake_quant(value) for fake_quant, value in zip(fake_quants, operands)]
            args, kwargs = with_product_operands(function, args, kwargs, values)
        _handling.active = True
        try:
            return function(*args, **kwargs)
        finally:
            _handling.active = False

    def _next_fake_quants(self):
        container = self.module._modules.get(CONTAINER)
        if container is None:  # an attention that prepare has given another forward: its product is float by design
            return None
        index, self.index = self.index, self.index + 1
        if index >= container.count and container._modules:
            self._refuse("more", container.count)
        return container.of(index)

    def check_all_ran(self):
        """A forward that left one out has given others the ranges of their neighbours."""
        container = self.module._modules.get(CONTAINER)
        if container is not None and container._modules and 0 < self.index < container.count:
            self._refuse("fewer", container.count)

    def _refuse(self, how_many, count):
        raise RuntimeError(
            f"{type(self.module).__name__}: forward computes {how_many} than the {count} matrix products that it computed on prepare's "
            "example_inputs; prepare it with inputs for which it computes all of them, or keep the module float with "
            "QConfigMapping.set_module_name"
        )


def place(placement, inputs, calls, scoped):
    """Gives each module that made one of `calls` its fake-quants. Modules that keep their products float need to be known as well:
    else a module around them would take the products for its own."""
    by_caller = {}
    for call in calls:
        by_caller.setdefault(call.caller, {}).setdefault(call.turn, []).append(call)
    for path, module in scoped:
        if path in by_caller:  # a module that runs several times has one set for all its forwards
            longest = max(by_caller[path].values(), key=len)
            add_submodule(module, CONTAINER, _fake_quants(placement, inputs, path, longest))
        if path in by_caller or (by_caller and isinstance(module, QuantizedAttention)):
            extend(module, mixin=QuantizedProducts)


def _fake_quants(placement, inputs, path, calls):
    container = ProductFakeQuants(len(calls))
    spec = placement.product_spec(path)
    for index, call in enumerate(calls):
        if spec is None or call.operands is None:
            reason = "a module that stays float keeps its products float" if spec is None else "an operand is stored or no matrix"
            placement.report.add(f"{path}.matmul#{index + 1}".lstrip("."), "layer", None, reason)
            continue
        placement.quantize_product()
        for name, value in zip((f"input_{index}", f"other_{index}"), call.operands):
            add_submodule(container, name, inputs.of(value, spec, f"{path}.{CONTAINER}.{name}".lstrip(".")))
    return container
