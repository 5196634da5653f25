#!/usr/bin/env bash
# Makes the locks out of the ranges in pyproject.toml: `make lock`. One for each way to install, all with the versions of test.txt,
# for Python 3.10 to 3.13 on every platform, with the hash of every file and without the address of an index. Needs npm too.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=.venv/bin/uv
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT

compile() { # OUT ARGUMENTS …
  local out=$1
  shift
  "$uv" pip compile --quiet --universal --no-annotate --python-version 3.10 --generate-hashes --custom-compile-command "make lock" \
    --output-file "requirements/$out" "$@"
  echo "requirements/$out"
}
extras() { printf -- '--extra %s ' "$@"; }

# shellcheck disable=SC2046 # the extras are words
compile test.txt pyproject.toml --upgrade -c requirements/constraints.txt \
  $(extras llamacpp transformers train merge ui space otel dev)
# What was tested, but for torch and its libraries, of which the Space has others.
grep -E '^[a-z]' requirements/test.txt | sed 's/ \\$//' > "$scratch/tested.txt"
grep -vE '^(torch|triton|nvidia-|cuda-)' "$scratch/tested.txt" > "$scratch/without-torch.txt"
compile server.txt pyproject.toml -c "$scratch/tested.txt" $(extras llamacpp ui)
compile transformers.txt pyproject.toml -c "$scratch/tested.txt" $(extras llamacpp ui transformers)
compile cluster.txt pyproject.toml -c "$scratch/tested.txt" $(extras llamacpp ui cluster)
compile space.txt pyproject.toml requirements/space-constraints.txt -c "$scratch/without-torch.txt" $(extras llamacpp transformers quantized space)
printf 'uv\nsetuptools\nwheel\n' | compile tools.txt - -c "$scratch/tested.txt"
echo 'litellm>=1.80,<2' | compile litellm.txt - --upgrade
# The peers of `make peers`, on the versions that ours runs on.
echo xllamacpp | compile peer-llamacpp.txt - -c "$scratch/tested.txt"
printf 'torch\ntransformers\nxgrammar>=0.2,<1\n' | compile peer-transformers.txt - -c "$scratch/tested.txt"
echo 'openvino-genai>=2026.4,<2027' | compile peer-openvino.txt - -c "$scratch/tested.txt"
compile clients.txt requirements/clients.in --upgrade
compile clients-older.txt requirements/clients-older.in --upgrade

# The hub installs this file together with Gradio, which has no hashes there, so that pip would refuse ours: direct packages,
# in the versions of space.txt.
grep -E '^[a-z]' requirements/space.txt | sed 's/ \\$//' > "$scratch/space.txt"
{
  echo "# What the Space installs, on Python 3.12: made by make lock out of pyproject.toml and requirements/space.txt."
  "$uv" pip compile --quiet pyproject.toml --no-deps --no-annotate --no-header --python-version 3.12 --python-platform linux \
    -c "$scratch/space.txt" $(extras llamacpp transformers quantized space)
} > requirements.txt
echo requirements.txt

# The JavaScript clients of `make clients`.
npm update --prefix tests/clients --package-lock-only --ignore-scripts --no-audit --no-fund --loglevel=error
echo tests/clients/package-lock.json
