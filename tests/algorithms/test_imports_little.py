"""Recipes can be read and tried without a model: importing them loads none."""

import subprocess
import sys

import pytest

HEAVY = ("flax", "transformers", "rljax.model", "rljax.rollout", "rljax.learn")


@pytest.mark.parametrize(
    "package", ["rljax.advantage", "rljax.loss", "rljax.algorithms"]
)
def test_importing_methods_loads_neither_networks_nor_sampler(package):
    # In a process of its own: other tests have imported everything here.
    program = f"import sys, {package}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert package in loaded
    assert not set(HEAVY) & set(loaded)
