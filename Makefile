# The commands of a developer. Everything goes into .venv/, build/ and the ignored paths of torchquant/.
# TORCHQUANT_PYTHON=python3 uses that environment, which has torch already, and creates none.
PYTHON := $(or $(TORCHQUANT_PYTHON),.venv/bin/python)
BUILD_DIR := $(or $(TORCHQUANT_BUILD_DIR),build)
BOOTSTRAP := $(or $(TORCHQUANT_PYTHON),python3) scripts/bootstrap.py

.DEFAULT_GOAL := help
.PHONY: help demo test build examples wheel bench bench-kernels zoo sanitize clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16
	@echo "With an environment that has torch already: TORCHQUANT_PYTHON=python3 make test"

demo: examples  ## train, quantize, convert and run the digits demo
	@PYTHONPATH="$(CURDIR)" $(PYTHON) examples/digits.py --runner $(BUILD_DIR)/cpp_examples/run_quantized/run_quantized

test: build  ## build everything and run all tests (ctest, then pytest)
	@$(BOOTSTRAP) test
	@$(PYTHON) scripts/cmake_build.py tests
	@$(PYTHON) scripts/run_tests.py

build:  ## build the library and place it in torchquant/
	@$(BOOTSTRAP) build
	@$(PYTHON) scripts/cmake_build.py build

examples: build  ## build the C++ examples against the installed package
	@$(PYTHON) scripts/cmake_build.py examples

wheel:  ## build a wheel into dist/
	@$(BOOTSTRAP) build
	$(PYTHON) -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

bench: build  ## compare whole networks with other systems (about an hour)
	@$(BOOTSTRAP) peers
	@PYTHONPATH="$(CURDIR)" $(PYTHON) benchmarks/peers/run.py

bench-kernels: build  ## run the C++ benchmarks of single kernels; those of the integer engine go into benchmarks/results/
	@$(BOOTSTRAP) bench
	@$(PYTHON) scripts/cmake_build.py benchmarks
	@PYTHONPATH="$(CURDIR)" $(PYTHON) benchmarks/kernels.py $(BUILD_DIR)/benchmarks/integer_conv_bench
	@for program in $(BUILD_DIR)/benchmarks/*_bench; do [ $${program##*/} = integer_conv_bench ] || $$program || exit 1; done

zoo: build  ## convert every network of torchvision and transformers (hours; goes on where it stopped)
	@$(BOOTSTRAP) peers
	@PYTHONPATH="$(CURDIR)" $(PYTHON) benchmarks/zoo.py

sanitize: export TORCHQUANT_BUILD_DIR := $(BUILD_DIR)/sanitize
sanitize: export CMAKE_ARGS := -DTORCHQUANT_SANITIZE=ON -DTORCHQUANT_PYTHON=OFF -DCMAKE_CXX_FLAGS_RELEASE=-O1
sanitize: export TORCHQUANT_CUDA := OFF
# Torch itself is not instrumented: its start-up allocations would count as leaks, its containers as overflows.
sanitize: export ASAN_OPTIONS := detect_leaks=0:detect_container_overflow=0
sanitize:  ## run the C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(BOOTSTRAP) test
	@$(PYTHON) scripts/cmake_build.py tests
	@$(PYTHON) scripts/run_tests.py --only-cpp

clean:  ## remove what was built; .venv stays
	rm -rf $(BUILD_DIR) dist *.egg-info demo_output
	rm -rf torchquant/lib torchquant/include torchquant/share torchquant/bin torchquant/_C*.so torchquant/_build_info.py
