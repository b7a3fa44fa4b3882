# Finds the header-only nlohmann/json and defines tq_json. It is used inside the library only; no public header includes it.
set(TORCHQUANT_NLOHMANN_JSON_DIR "" CACHE PATH "Folder that holds nlohmann/json.hpp; empty looks in the Python, then in the system")
if(NOT TORCHQUANT_NLOHMANN_JSON_DIR AND Python3_Interpreter_FOUND)
  execute_process(
    COMMAND "${Python3_EXECUTABLE}" -c
            "import importlib.util as u; s = u.find_spec('nlohmann_json'); print(s.submodule_search_locations[0] if s else '')"
    OUTPUT_VARIABLE json_package OUTPUT_STRIP_TRAILING_WHITESPACE)
endif()
find_path(json_include_dir nlohmann/json.hpp HINTS ${TORCHQUANT_NLOHMANN_JSON_DIR} ${json_package}/include NO_CACHE)
if(NOT json_include_dir)
  message(FATAL_ERROR "nlohmann/json.hpp was not found. Run '${Python3_EXECUTABLE} -m pip install nlohmann-json==3.12.0', or name "
                      "its folder with -DTORCHQUANT_NLOHMANN_JSON_DIR=...")
endif()
add_library(tq_json INTERFACE)
target_include_directories(tq_json SYSTEM INTERFACE "${json_include_dir}")
