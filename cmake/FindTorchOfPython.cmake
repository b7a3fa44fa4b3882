# Finds torch: the one of Python3_EXECUTABLE, unless CMAKE_PREFIX_PATH or Torch_DIR names another. Sets TORCHQUANT_TORCH_VERSION
# ("2.11.0"), TORCHQUANT_TORCH_MINOR ("2.11") and TORCHQUANT_TORCH_CUDA ("13.0", empty for a CPU build of torch), and defines
# tq_torch (torch's headers and CPU libraries).
find_package(Python3 QUIET COMPONENTS Interpreter OPTIONAL_COMPONENTS Development.Module)
if(NOT Torch_DIR AND Python3_Interpreter_FOUND)
  # Where torch.utils.cmake_prefix_path points, without the seconds that importing torch takes.
  execute_process(
    COMMAND "${Python3_EXECUTABLE}" -c
            "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    OUTPUT_VARIABLE torch_package OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(torch_package)
    list(APPEND CMAKE_PREFIX_PATH "${torch_package}/share/cmake")
  endif()
endif()

# A CUDA build of torch stops find_package on a machine without the toolkit, and with a new toolkit it adds sm_50, which nvcc
# refuses. Both happen while torch's cuda.cmake defines torch::cudart, and it skips itself when that target is there.
# FindCudaForTorch.cmake links the real runtime into it where we compile CUDA ourselves.
if(NOT TARGET torch::cudart)
  add_library(torch::cudart INTERFACE IMPORTED)
endif()
set(CMAKE_MESSAGE_LOG_LEVEL ERROR)  # its warning about the static library kineto concerns nobody
find_package(Torch QUIET)
unset(CMAKE_MESSAGE_LOG_LEVEL)
if(NOT Torch_FOUND)
  message(FATAL_ERROR "torch was not found: '${Python3_EXECUTABLE}' has none. Install it there, choose another interpreter "
                      "with -DPython3_EXECUTABLE=..., or point CMAKE_PREFIX_PATH to a LibTorch.")
endif()

set(TORCHQUANT_TORCH_VERSION "${Torch_VERSION}")
string(REGEX MATCH "^[0-9]+\\.[0-9]+" TORCHQUANT_TORCH_MINOR "${Torch_VERSION}")  # what a binary is bound to
set(TORCHQUANT_TORCH_CUDA "")
if(EXISTS "${TORCH_INSTALL_PREFIX}/version.py")
  file(STRINGS "${TORCH_INSTALL_PREFIX}/version.py" torch_cuda_line REGEX "^cuda:?.*= *'")
  string(REGEX REPLACE ".*'([0-9.]+)'.*" "\\1" TORCHQUANT_TORCH_CUDA "${torch_cuda_line}")
elseif(TARGET torch_cuda)
  set(TORCHQUANT_TORCH_CUDA "unknown")
endif()
message(STATUS "TorchQuant: torch ${TORCHQUANT_TORCH_VERSION} in ${TORCH_INSTALL_PREFIX}")

# torch_cpu_library, not torch: the library needs neither libtorch_python nor CUDA.
add_library(tq_torch INTERFACE)
target_include_directories(tq_torch SYSTEM INTERFACE ${TORCH_INCLUDE_DIRS})
target_link_libraries(tq_torch INTERFACE torch_cpu_library c10)
