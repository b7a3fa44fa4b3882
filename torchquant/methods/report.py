"""What a method did to a model, layer by layer, and why it left the rest alone: the model's `torchquant_methods` lists these."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from torch import nn


@dataclass
class MethodReport:
    """`rows` holds a dict per layer or pair of layers: "layer", "changed" (bool), "reason" (why it was left alone, None where it
    was changed), and what the method measured; `settings` the arguments that it was called with."""

    method: str
    settings: dict = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)

    def add(self, layer: str, reason: str | None = None, **measured) -> None:
        """`reason` says why the layer was left alone; None where it was changed."""
        self.rows.append({"layer": layer, "changed": reason is None, "reason": reason, **measured})

    @property
    def changed(self) -> list[str]:
        return [row["layer"] for row in self.rows if row["changed"]]

    @property
    def left_alone(self) -> dict[str, str]:
        """Layer -> reason."""
        return {row["layer"]: row["reason"] for row in self.rows if not row["changed"]}

    def attach_to(self, model: nn.Module) -> None:
        """Appends itself to the model's history."""
        model.torchquant_methods = [*getattr(model, "torchquant_methods", ()), self]

    def to_dict(self) -> dict:
        return asdict(self)

    def __str__(self):
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        width = max((len(row["layer"]) for row in self.rows), default=0)
        lines = [f"{row['layer']:<{width}}  {row['reason'] or _measured(row)}" for row in self.rows]
        return "\n".join([f"{self.method}({settings}): changed {len(self.changed)} of {len(self.rows)}", *lines])


def _measured(row: dict) -> str:
    values = {name: value for name, value in row.items() if name not in ("layer", "changed", "reason") and value is not None}
    parts = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()]
    return f"changed: {', '.join(parts)}"
