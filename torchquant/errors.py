"""Sentences that several functions raise, and what they quote of other errors."""

import difflib


def nearest(name: str, allowed) -> str:
    """The names that the one given may have meant, for the end of an error."""
    allowed = list(allowed)
    close = difflib.get_close_matches(name, allowed, n=5, cutoff=0.3) or allowed[:5]
    return ", ".join(map(repr, close)) or "none"


def no_such_layer(owner: str, layer: str, layers) -> str:
    return f"{owner}: there is no layer {layer!r}; nearest: {nearest(layer, layers)}"


def first_line(error: Exception) -> str:
    return _lines(error)[0]


def last_line(error: Exception) -> str:
    """What went wrong, without the TorchScript code that comes before it."""
    return _lines(error)[-1]


def _lines(error: Exception) -> list[str]:
    return str(error).strip().splitlines() or [type(error).__name__]  # an error may come without a message
