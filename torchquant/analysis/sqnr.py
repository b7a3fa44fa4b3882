"""The signal-to-quantization-noise ratio, as every report of Python states it; csrc/convert/sensitivity.h is C++'s."""

import math


def sqnr_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two sums of squares: infinite without noise, minus infinite where there is no signal under the noise
    or one of them is NaN or infinite."""
    if noise == 0 and math.isfinite(signal):
        return math.inf
    if signal == 0 or not (math.isfinite(signal) and math.isfinite(noise)):
        return -math.inf
    return 10.0 * math.log10(signal / noise)
