#!/usr/bin/env bash
# What a GPU says of the CUDA kernels: builds them for it, runs the op tests, searches small runs with
# compute-sanitizer, times the benchmark cases, and writes benchmarks/results/gpu-<device>.json.
# Needs a CUDA build of torch, nvcc, pytest, hypothesis and ninja; takes under ten minutes on an H100 with 16 cores.
# usage: benchmarks/gpu_check.sh [FOLDER FOR LOGS]
set -uo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
logs="$(realpath -m "${1:-build/gpu-check}")"
mkdir -p "$logs"
rm -f "$logs"/*.exit
export PYTHONUNBUFFERED=1 FLOWOPS_CUDA=1 NVCC_APPEND_FLAGS="-Xptxas -v"

stage() {
  printf '\n=== %s (%d s)\n' "$1" "$SECONDS"
}

stage "machine"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
device="$("$python" -c 'import re, torch; print(re.sub(r"\W+", "-", torch.cuda.get_device_name()).lower())')" || exit 1

stage "build"
find build -path '*flowops._cuda*' -name '*_kernels.o' -delete 2> /dev/null
"$python" setup.py build_ext --inplace > "$logs/build.log" 2>&1 || { tail -n 40 "$logs/build.log"; exit 1; }
"$python" .ci/cuda_report.py "$logs/build.log" .ci/cuda_spills > "$logs/ptxas.txt"
tail -n 1 "$logs/ptxas.txt"

stage "tests"
timeout 150 "$python" -m pytest -q -p no:cacheprovider -m "not slow" --device cuda python_tests/ops \
  --junitxml "$logs/ops.xml" > "$logs/tests.log" 2>&1
tail -n 25 "$logs/tests.log"

stage "compute-sanitizer"
# Import of torch under the sanitizer is most of each run; the files run side by side.
for file in python_tests/ops/test_*.py; do
  for tool in memcheck racecheck; do
    name="$(basename "$file" .py)-$tool"
    (
      timeout 90 compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 5 \
        "$python" -m pytest -q -x -p no:cacheprovider --device cuda -k "match and float32" "$file" \
        > "$logs/$name.log" 2>&1
      echo $? > "$logs/$name.exit"
    ) &
  done
done
wait
printf 'exit codes (5: no such test, 9: found something, 124: out of time)\n'
grep . "$logs"/*.exit

stage "timings"
timeout 240 "$python" -m benchmarks.run --parts ops --device cuda --budget 0.5 --out "$logs/timings.json" | tee "$logs/timings.txt"

stage "record"
"$python" -m benchmarks.record write --out "benchmarks/results/gpu-$device.json" --ptxas "$logs/ptxas.txt" \
  --timings "$logs/timings.json" --sanitizer "$logs" "$logs/ops.xml"
