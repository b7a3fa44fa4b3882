"""Measurements on models: what a quantized one costs in accuracy, what it gains, and where it goes wrong."""
