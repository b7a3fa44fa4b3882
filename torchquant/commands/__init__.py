"""The commands of `torchquant`, one module each; torchquant.cli lists them."""
