"""The report of a run: one HTML file that holds everything, for a browser on a desk or a phone, with no network."""

from torchquant.report.page import write

__all__ = ["write"]
