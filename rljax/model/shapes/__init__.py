"""Configurations of known models by name, without their weights.

The memory and time of a program depend on these numbers only, so it can be planned and
compiled before anything is downloaded. Each JSON file in this folder holds the keys of
a published config.json that describe the architecture; for Gemma 3, its text model.
"""

import json
import pathlib

from rljax.model.config import DecoderConfig
from rljax.model.hugging_face import config

_FOLDER = pathlib.Path(__file__).parent


def names() -> list[str]:
    """The names of all models here, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def named(name: str) -> DecoderConfig:
    """The configuration of a known model, such as qwen3-8b.

    Raises:
      ValueError: if no model has this name.
    """
    if name not in names():
        raise ValueError(
            f"the model must be one of {', '.join(names())}, got {name!r}; to add"
            " another, put its config.json into rljax/model/shapes."
        )
    entries = json.loads((_FOLDER / f"{name}.json").read_text())
    return config.read(entries, f"{name}.json")
