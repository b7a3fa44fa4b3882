// The converter's passes as convert() runs them. Called by convert() and by what looks at a conversion on its way.
#pragma once

#include <functional>
#include <string>

#include "convert/conversion.h"

namespace torchquant::conversion {

// A frozen copy of `prepared` on the CPU in eval mode, its parameters still attributes, before the first pass. Refuses
// a module that is no prepared one. `prepared` is left as it was.
Conversion start_conversion(const torch::jit::Module& prepared);

// TorchScript's own clean-up, one of the passes: tuples hide values from the others, and in-place ops make them mean
// different things at different places.
void simplify(Conversion& conversion);

// Runs the passes in their order; `after`, if given, is called with the name of each that has run. `islands` as in
// ConvertOptions.
void run_passes(Conversion& conversion, bool islands, const std::function<void(const std::string&)>& after = {});

}  // namespace torchquant::conversion
