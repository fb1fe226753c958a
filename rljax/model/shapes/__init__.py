"""Shapes of known models by name, without their weights.

What a program takes depends on these numbers alone, so it can be planned and compiled
before anything is downloaded. Each file beside this one holds the keys of a published
config.json that say how the model computes; of Gemma 3 those of its text model.
"""

import json
import pathlib

from rljax.model.config import DecoderConfig
from rljax.model.hugging_face import config

_FOLDER = pathlib.Path(__file__).parent


def names() -> list[str]:
    """The shapes there are."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def named(name: str) -> DecoderConfig:
    """The configuration of a known model, such as qwen3-8b.

    Raises:
      ValueError: if there is none of this name.
    """
    if name not in names():
        raise ValueError(
            f"the model must be one of {', '.join(names())}, got {name!r}; for another,"
            " put its config.json beside these, into rljax/model/shapes."
        )
    entries = json.loads((_FOLDER / f"{name}.json").read_text())
    return config.read(entries, f"{name}.json")
