// From what the passes noted to the receipt and the error that lists the fallbacks. Called by convert() at its end.
#pragma once

#include <string>

#include "archive/receipt.h"
#include "convert/conversion.h"

namespace torchquant::conversion {

// One row per layer in program order: what the passes lowered, what fell back, and what stays float by design.
Receipt make_receipt(Conversion& conversion);

// "  conv1 (conv2d): <reason>" for each fallback, a line each; empty if there is none.
std::string list_fallbacks(Conversion& conversion);

}  // namespace torchquant::conversion
