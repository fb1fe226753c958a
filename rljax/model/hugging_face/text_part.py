"""The language model in a folder of a multimodal one, such as Gemma 3 from 4B on.

Only this part is read and trained. It is saved as a folder of its own, which
transformers loads as a text model; what reads images is left behind.
"""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

# model_type -> that of its language model. Given text alone, it must compute what the
# language model computes alone: PaliGemma's, for example, does not.
MULTIMODAL = {"gemma3": "gemma3_text", "mistral3": "mistral"}

# Keys that may stand beside text_config instead of in it.
_SHARED = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"),
    *("dtype", "torch_dtype", "transformers_version"),
)
_IMAGES = re.compile(r"(?:model\.)?(?:vision_tower|multi_modal_projector)\.")


def entries(said: dict[str, Any], source: str | pathlib.Path) -> dict[str, Any]:
    """The language model's entries of config.json; those of a text model are all.

    Args:
      said: the content of config.json.
      source: path of the file, for messages.

    Raises:
      ValueError: naming the file, if a multimodal model's text_config is missing or
        describes another family.
    """
    if said.get("model_type") not in MULTIMODAL:
        return said
    kind, text = MULTIMODAL[said["model_type"]], said.get("text_config")
    if not isinstance(text, dict) or text.get("model_type", kind) != kind:
        raise ValueError(
            f"{source}: text_config must describe a model of type {kind!r}, got"
            f" {json.dumps(text)}; take the file published with the weights."
        )
    shared = {key: said[key] for key in _SHARED if key in said}
    return {**shared, **text, "model_type": kind}


class Renamed(NamedTuple):
    """An open safetensors file whose tensors have other names."""

    file: Any
    names: Mapping[str, str]

    def get_slice(self, name: str) -> Any:
        return self.file.get_slice(self.names[name])


def tensors(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's tensors by the names that a text model has.

    Args:
      stored: tensor name -> the open file that holds it.

    Returns:
      The same, without tensors that read images; unchanged for a text model.
    """
    names = {_text_name(name): name for name in stored}
    if all(new == old for new, old in names.items()):
        return dict(stored)
    return {
        new: Renamed(stored[old], names)
        for new, old in names.items()
        if not _IMAGES.match(old)
    }


def _text_name(name: str) -> str:
    # Files have a prefix; modules of transformers 5 have it behind "model.".
    plain = name.removeprefix("language_model.")
    return plain.replace("model.language_model.", "model.", 1)
