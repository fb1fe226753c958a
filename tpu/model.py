"""Shapes of known models, without their weights: files of `DecoderConfig` in models/.

What a program takes depends on these numbers alone. Llama's scaling of rotary
frequencies is left out: it changes values, and nothing that is planned or compiled.
"""

import json
import pathlib

import jax.numpy as jnp

from rljax.model import DecoderConfig

FOLDER = pathlib.Path(__file__).parent / "models"


def names() -> list[str]:
    """The shapes there are."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def shape(name: str) -> DecoderConfig:
    """The configuration of a model, for long training on large chips: activations in
    bfloat16, layers in a scan and recomputed backward.

    Raises:
      ValueError: if there is none of this name.
    """
    if name not in names():
        raise ValueError(
            f"--model must be one of {', '.join(names())}, got {name!r}; for another,"
            f" put a file beside them."
        )
    numbers = json.loads((FOLDER / f"{name}.json").read_text())
    return DecoderConfig(**numbers, dtype=jnp.bfloat16, unroll=1, remat=True)
