"""Networks behind the `Policy` interface. flax lives here and nowhere else.

`Model` is a decoder with its tokenizer and initial parameters: `new` or `load`. A new
part of a network belongs here, a new family of Hugging Face models into `hugging_face`.
Nothing here knows rewards, advantages or losses.
"""

from rljax.model import hugging_face, language_model
from rljax.model.decoder import decoder_policy
from rljax.model.language_model import Model
from rljax.model.transformer import DecoderConfig

__all__ = [
    "DecoderConfig",
    "Model",
    "decoder_policy",
    "hugging_face",
    "language_model",
]
