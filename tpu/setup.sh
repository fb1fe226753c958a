#!/usr/bin/env bash
# Makes .venv for a TPU machine: the pinned requirements, the project and libtpu.
# Run it once on every host of a slice, from anywhere: tpu/setup.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

make --no-print-directory install
.venv/bin/python -m pip install -qq --constraint requirements-dev.lock --editable '.[experiments,tpu]' gcsfs
# Without asking for devices: a slice answers only when all its hosts ask.
.venv/bin/python -c 'import jax, libtpu; print("jax", jax.__version__, "and libtpu are in .venv")'
