// Marks what the library exports; everything else is hidden. Used by every room above kernels.
#pragma once

#define TQ_API __attribute__((visibility("default")))
