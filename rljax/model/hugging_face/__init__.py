"""Hugging Face folders: configuration and weights in and out, without torch.

`folder` reads and writes whole folders; `config` config.json, with `rope` and `layers`;
`weights` the files of tensors, which `tensors` names and `shards` brings to devices;
`metadata` what else a folder says; `adapter` LoRA adapters, as PEFT has them. A further
family is a row in `family.FAMILIES`.
"""

from rljax.model.hugging_face.folder import config_entries, load, save

__all__ = ["config_entries", "load", "save"]
