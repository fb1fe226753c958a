#!/usr/bin/env bash
# Runs a module on this machine, such as: tpu/run.sh experiments.addition --quick
# It uses `exec`, so that a SIGTERM reaches Python, which saves before it exits.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/.venv/bin:$PATH"
exec python3 -m "$@"
