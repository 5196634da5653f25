#!/usr/bin/env bash
# Installs what the locks name into .venv, each package checked against its hash: requirements/install.sh LOCK …
# What the installer says goes to .venv/setup.log; of what is wrong it prints one line.
set -uo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
fail() { echo "make: $1" >&2; exit 1; }

if [ ! -x "$venv/bin/python" ]; then
  for each in ${PYTHON:-} python3 python3.12 python3.11 python3.13 python3.10; do
    "$each" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null && python=$each && break
  done
  [ -n "${python:-}" ] || fail "this project needs Python 3.10 to 3.13: install one, or set PYTHON=/path/to/python3"
  "$python" -m venv "$venv" > /dev/null 2>&1 || fail "$python has no venv module (Debian: apt-get install python3-venv)"
fi
log=$venv/setup.log
uv=.venv/bin/uv

# One line out of what an installer says.
reason() {
  local package
  package=$(grep -iom1 'hash mismatch for `[^`]*`' "$log" | cut -d'`' -f2)
  [ -n "$package" ] || package=$(grep -A1 'DO NOT MATCH THE HASHES' "$log" | grep -om1 '[A-Za-z0-9_.-]*==[^ ]*')
  if [ -n "$package" ]; then
    echo "the hash of $package is not the one in $1: restore the file (git checkout $1), or run make lock if you changed it on purpose"
  elif grep -qiE 'dns error|failed to (connect|fetch)|client error|connection|name resolution' "$log"; then
    echo "the package index cannot be reached for $1 (see $log)"
  elif grep -qi 'no space left' "$log"; then
    echo "the disk is full"
  else
    echo "$1 cannot be installed: $(grep -im1 -E 'error|cause' "$log" | sed 's/^ *//' | cut -c1-200) (see $log)"
  fi
}

quietly() { # LOCK COMMAND …
  local lock=$1
  shift
  "$@" > "$log" 2>&1 || fail "$(reason "$lock")"
}

tools=requirements/tools.txt
pinned=$(sed -nE 's/^uv==([^ ]*).*/\1/p' $tools)
if [ "$("$uv" --version 2> /dev/null | cut -d' ' -f2)" != "$pinned" ]; then
  quietly $tools .venv/bin/python -m pip install --disable-pip-version-check --quiet --require-hashes --requirement $tools
fi
export VIRTUAL_ENV=$PWD/$venv UV_NO_PROGRESS=1
case $venv in /*) VIRTUAL_ENV=$venv ;; esac
for lock in "$@"; do
  case $lock in
    embedded.txt) quietly requirements/$lock "$uv" pip install --no-deps --require-hashes --requirement requirements/$lock ;;
    *) quietly requirements/$lock "$uv" pip install --require-hashes --requirement requirements/$lock ;;
  esac
done
[ -n "${ONLY_LOCKS:-}" ] || quietly pyproject.toml "$uv" pip install --no-deps --no-build-isolation --editable .
