# `cmake --install`: lib/, include/ and share/cmake/TorchQuant/ under the prefix, and _build_info.py beside them. Installed into
# torchquant/ of the source tree or of a wheel, the prefix is the Python package.
include(CMakePackageConfigHelpers)
set(package_dir share/cmake/TorchQuant)

install(TARGETS ${installed_targets} EXPORT TorchQuantTargets LIBRARY DESTINATION lib)
install(EXPORT TorchQuantTargets NAMESPACE TorchQuant:: DESTINATION ${package_dir})
install(DIRECTORY csrc/ DESTINATION include/torchquant FILES_MATCHING PATTERN "*.h" PATTERN "python" EXCLUDE)

configure_package_config_file(cmake/TorchQuantConfig.cmake.in TorchQuantConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(TorchQuantConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/TorchQuantConfig.cmake" "${CMAKE_CURRENT_BINARY_DIR}/TorchQuantConfigVersion.cmake"
        DESTINATION ${package_dir})

# Where TorchQuantConfig.cmake looks for torch first: beside the package, as in site-packages. A source tree has none there, so
# the package in it, which never leaves this machine, remembers the torch of its build.
set(source_package "${CMAKE_CURRENT_SOURCE_DIR}/torchquant")
install(CODE "
  if(CMAKE_INSTALL_PREFIX STREQUAL \"${source_package}\")
    file(CONFIGURE OUTPUT \"${source_package}/${package_dir}/TorchOfBuild.cmake\"
         CONTENT \"set(torchquant_torch \\\"${TORCH_INSTALL_PREFIX}\\\")\\n\")
  endif()")

if(TARGET torchquant_cuda_library)
  set(build_info_cuda True)
  set(build_info_cuda_architectures "${TORCHQUANT_CUDA_ARCHITECTURES}")
else()
  set(build_info_cuda False)
  set(build_info_cuda_architectures "")
endif()
configure_file(cmake/build_info.py.in _build_info.py @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/_build_info.py" DESTINATION .)
