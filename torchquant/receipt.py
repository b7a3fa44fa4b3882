"""The lowering receipt in Python: for every layer the kernel that runs it, or the reason it stayed float."""

from __future__ import annotations

import json
from collections import Counter

from torchquant.shown_as_table import ShownAsTable, new_table


class Receipt(ShownAsTable):
    """The rows that the converter wrote, one dict per layer:

    ``layer``, ``kind``, ``precision`` ("int8", "int4", "fp8_e4m3", "fp8_e5m2", "float"), ``kernel``, ``reason`` (why it stayed
    float), ``fused`` (what the kernel took in besides the layer), ``inputs`` and ``output`` (paths of the activation fake-quants read and written), ``fallback``
    (it was asked to be quantized and stayed float).
    """

    _text_width = 140

    def __init__(self, rows: list[dict]):
        self.rows = rows

    @classmethod
    def from_json(cls, text: str) -> Receipt:
        return cls(json.loads(text)["rows"])

    def to_json(self) -> str:
        return json.dumps({"rows": self.rows})

    def summary(self) -> dict[str, int]:
        """Number of layers per precision: {"int8": 12, "float": 1}."""
        return dict(Counter(row["precision"] for row in self.rows))

    def fallbacks(self) -> list[dict]:
        """The rows of layers that were asked to be quantized and stayed float."""
        return [row for row in self.rows if row["fallback"]]

    def table(self):
        table = new_table(title="Lowering receipt", caption=_summary_line(self.summary()))
        for heading in ("layer", "kind", "precision", "kernel", "fused / reason"):
            table.add_column(heading, overflow="fold")
        for row in self.rows:
            detail = row["reason"] or ", ".join(row["fused"])
            table.add_row(row["layer"], row["kind"], row["precision"], row["kernel"], detail)
        return table

    def __repr__(self) -> str:
        return f"Receipt({_summary_line(self.summary())})"

    def __len__(self) -> int:
        return len(self.rows)


def _summary_line(summary: dict[str, int]) -> str:
    return ", ".join(f"{count} {precision}" for precision, count in sorted(summary.items())) or "no layers"
