#!/usr/bin/env bash
# Runs `TOOL ARGUMENTS...`, or says that the tool is missing and exits with 77 (skipped).
set -euo pipefail
if ! command -v "$1" >/dev/null; then
  echo "skipped: $1 is not installed (scripts/install-deps --dev and scripts/python-env install what the tests use)"
  exit 77
fi
exec "$@"
