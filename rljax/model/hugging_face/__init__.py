"""Reads and writes Hugging Face folders, without torch.

    folder      whole folders
    config      config.json; `rope` and `layers` are parts of it
    weights     files of tensors; `tensors` names them, `shards` moves them to devices
    text_part   the language model in a multimodal folder
    metadata    everything else in a folder
    adapter     LoRA adapters in PEFT's format
    gguf_file   converts a GGUF file to a folder; `pretrained` obtains SmolLM2

To add a family of models, add a row to `family.FAMILIES`.
"""

from rljax.model.hugging_face.folder import config_entries, load, save

__all__ = ["config_entries", "load", "save"]
