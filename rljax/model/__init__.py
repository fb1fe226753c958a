"""Networks behind the `Policy` interface. flax lives here and nowhere else.

A new part of a network belongs here, a new family of Hugging Face models into
`hugging_face`. Nothing here knows rewards, advantages or losses.
"""

from rljax.model import hugging_face
from rljax.model.decoder import decoder_policy
from rljax.model.transformer import DecoderConfig

__all__ = ["DecoderConfig", "decoder_policy", "hugging_face"]
