#!/bin/bash
# Builds, tests and measures TorchQuant on a machine with a CUDA GPU; needs no network. See usage() below.
set -u
cd "$(dirname "$0")/.." || exit
root=$PWD

usage() {
  cat <<TEXT
Usage: scripts/gpu_check.sh [--only PART,...] [--results DIR] [--all-tests]

Checks this checkout on the GPU in front of it, in under nine minutes, and writes JSON whose file name and text name the GPU.

  --only PARTS    of build,tests,sanitizer,benchmarks,cpp (default: all but cpp, in this order). cpp is for a machine with
                  GoogleTest and more time: the C++ tests, which run the kernels on the CPU, and the C++ example programs
  --results DIR   where the JSON goes (default: benchmarks/results)
  --all-tests     every Python test instead of those of CUDA; takes longer than nine minutes on few cores
  -h, --help      show this text

Needs torch 2.11 with CUDA, cmake, ninja, nvcc of torch's CUDA version, a C++ compiler and pytest, nothing else and no network.
TORCHQUANT_PYTHON names the Python (default: python3). compute-sanitizer is used if it is installed. Each part has a limit of
time and says what it skips.
TEXT
}

fail() {
  echo "gpu_check: $1" >&2
  exit "${2:-1}"
}

default=build,tests,sanitizer,benchmarks
known=$default,cpp
parts=$default
results=$root/benchmarks/results
tests=(tests/python/test_cuda_*.py)
while [ $# -gt 0 ]; do
  case $1 in
    --only)
      [ $# -ge 2 ] || fail "--only needs a list of $known." 2
      parts=$2
      shift
      ;;
    --results)
      [ $# -ge 2 ] || fail "--results needs a folder." 2
      results=$2
      shift
      ;;
    --all-tests) tests=(tests/python) ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) fail "unknown argument '$1'; --help lists them." 2 ;;
  esac
  shift
done
for part in ${parts//,/ }; do
  case ,$known, in
    *,"$part",*) ;;
    *) fail "--only takes $known, got '$part'." 2 ;;
  esac
done

python=${TORCHQUANT_PYTHON:-python3}
gpu=$("$python" -c 'import torch
if torch.cuda.is_available():
    print(*torch.cuda.get_device_capability(), torch.cuda.get_device_name())' 2>/dev/null) ||
  fail "'$python' cannot import torch; TORCHQUANT_PYTHON names another Python."
[ -n "$gpu" ] || fail "torch of '$python' sees no CUDA GPU, so there is nothing to check on this machine."
read -r major minor gpu_name <<<"$gpu"
[ "$major" -ge 8 ] || fail "$gpu_name is of compute capability $major.$minor, and the kernels need 8.0 (Ampere) or newer."
architecture=$major$minor
[ "$architecture" = 90 ] && architecture=90a
mkdir -p "$results" || fail "cannot write into '$results'."
results=$(cd "$results" && pwd)
export TORCHQUANT_RESULTS_DIR=$results TORCHQUANT_REQUIRE_CUDA=1 PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export TORCHQUANT_CUDA=ON TORCHQUANT_CUDA_ARCHITECTURES=$architecture-real TORCHQUANT_BUILD_DIR=$root/build/gpu_check
echo "gpu_check: $gpu_name (sm_$architecture); parts: $parts; results: $results"

rows=()
failed=0

# run PART SECONDS NAME COMMAND...: one row of the report.
run() {
  local part=$1 limit=$2 name=$3 start=$SECONDS status=passed code
  shift 3
  echo "== $part: $name"
  timeout --kill-after=10 "$limit" "$@"
  code=$?
  if [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then
    status="stopped after $limit s"
  elif [ "$code" -ne 0 ]; then
    status="failed ($code)"
  fi
  [ "$code" -eq 0 ] || failed=1
  rows+=("$part|$name|$status|$((SECONDS - start))")
}

skip() {
  echo "== $1: skipped, because $2"
  rows+=("$1||skipped: $2|0")
}

# The limits of the default parts add up to less than nine minutes.
build_part() { run build 190 "sm_$architecture only" "$python" scripts/cmake_build.py build; }

tests_part() { run tests 80 "${tests[*]}" "$python" -m pytest -q "${tests[@]}"; }

sanitizer_part() {
  local sanitizer
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
  if [ -z "$sanitizer" ]; then
    skip sanitizer "compute-sanitizer is neither on PATH nor in /usr/local/cuda/bin"
    return
  fi
  # torch's caching allocator would hide accesses past the end of a tensor; kns: our kernels alone, by their namespace.
  # racecheck finds barriers that are missing, which an emulation of the kernels by fibers cannot.
  local tool
  for tool in memcheck racecheck; do
    run sanitizer 55 "$tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --kernel-name kns=torchquant \
      --error-exitcode 1 "$python" -m pytest -q tests/python/test_cuda_ops.py -k agrees_with_cpu
  done
}

benchmarks_part() {
  local script
  for script in training_ops:30 inference_ops:40 networks:80; do
    run benchmarks "${script#*:}" "benchmarks/cuda/${script%:*}.py" "$python" "benchmarks/cuda/${script%:*}.py" --seconds 0.05
  done
}

cpp_part() {
  if ! printf '#include <gmock/gmock.h>\n#include <gtest/gtest.h>\n' | "${CXX:-c++}" -E -x c++ - >/dev/null 2>&1; then
    skip cpp "GoogleTest's headers (gtest, gmock) are not installed"
    return
  fi
  run cpp 500 "C++ tests are built" "$python" scripts/cmake_build.py tests
  run cpp 300 "C++ tests" "$python" scripts/run_tests.py --only-cpp
  run cpp 300 "C++ examples" "$python" -m pytest -q tests/python/test_cpp_examples.py
}

wanted() { case ,$parts, in *,$1,*) return 0 ;; esac; return 1; }
for part in ${known//,/ }; do
  if wanted "$part"; then
    "${part}_part"
  elif [ "$parts" = "$default" ]; then
    skip "$part" "nine minutes do not suffice for it too; --only $part runs it"
  fi
done

printf '%s\n' "${rows[@]}" | GPU=$gpu_name "$python" -c '
import json, os, pathlib, re, sys, time
rows = [dict(zip(("part", "what", "status", "seconds"), line.rstrip("\n").split("|"))) for line in sys.stdin]
path = pathlib.Path(os.environ["TORCHQUANT_RESULTS_DIR"]) / ("gpu_check_" + re.sub(r"\W+", "_", os.environ["GPU"].lower()) + ".json")
document = {"gpu": os.environ["GPU"], "date": time.strftime("%Y-%m-%d"), "rows": rows}
path.write_text(json.dumps(document, indent=2) + "\n")
for row in rows:
    print("{part:<12}{seconds:>5} s  {status:<24} {what}".format(**row))
print("written:", path)'
exit $failed
