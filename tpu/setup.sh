#!/usr/bin/env bash
# Makes .venv on a TPU machine, with the pinned requirements, the project and libtpu.
# Run it once on every host of a slice, from any folder: tpu/setup.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

make --no-print-directory install
.venv/bin/python -m pip install -qq --constraint requirements-dev.lock --editable '.[experiments,tpu]' gcsfs
# Do not ask for devices here: a slice answers only when all its hosts ask.
.venv/bin/python -c 'import jax, libtpu; print("jax", jax.__version__, "and libtpu are in .venv")'
