#!/usr/bin/env bash
# Prints the path of a Chromium for the browser tests; installs Debian's where it is missing and may be installed.
set -euo pipefail
find_it() {
  for name in "${CHROMIUM:-}" chromium chromium-browser google-chrome; do
    [ -n "$name" ] && command -v "$name" && return
  done
  return 1
}
find_it && exit
if command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
  echo "tests: installing chromium" >&2
  apt-get update -qq > /dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y chromium > /dev/null 2>&1 || true
  find_it && exit
fi
echo "tests: the browser tests need Chromium (Debian: apt-get install chromium), or CHROMIUM=/path/to/it" >&2
exit 1
