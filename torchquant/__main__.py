"""`python -m torchquant`, the same as the command `torchquant`."""

from torchquant.cli import main

main(prog_name="torchquant")
