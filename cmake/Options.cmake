# What a builder may choose. Included first by CMakeLists.txt.
set(TORCHQUANT_CUDA AUTO CACHE STRING "Build libtorchquant_cuda.so: AUTO (if nvcc is found), ON or OFF")
set_property(CACHE TORCHQUANT_CUDA PROPERTY STRINGS AUTO ON OFF)
set(TORCHQUANT_CUDA_ARCHITECTURES "80-real;90a-real;80-virtual" CACHE STRING
    "CUDA architectures; the default holds code for sm_80 and sm_90a and compute_80 PTX for every later GPU")
option(TORCHQUANT_PYTHON "Build the Python extension torchquant/_C" ON)
option(TORCHQUANT_TESTS "Declare the GoogleTest tests (target: tests)" OFF)
option(TORCHQUANT_BENCHMARKS "Declare the Google Benchmark programs (target: benchmarks)" OFF)
option(TORCHQUANT_DEV "Treat warnings as errors" OFF)
option(TORCHQUANT_SANITIZE "Build with AddressSanitizer and UndefinedBehaviorSanitizer, for the C++ tests" OFF)

if(NOT TORCHQUANT_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "TORCHQUANT_CUDA must be AUTO, ON or OFF; got '${TORCHQUANT_CUDA}'.")
endif()
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
# Installing into the source tree makes it importable like an installed package.
if(CMAKE_INSTALL_PREFIX_INITIALIZED_TO_DEFAULT)
  set(CMAKE_INSTALL_PREFIX "${CMAKE_CURRENT_SOURCE_DIR}/torchquant" CACHE PATH "" FORCE)
endif()
set(CMAKE_INSTALL_MESSAGE LAZY)  # only what changed
