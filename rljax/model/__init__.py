"""Networks behind the `Policy` interface. flax lives here and nowhere else.

`Model` is a decoder with its tokenizer and initial parameters: `new` or `load`.
`shapes` names known models without their weights. A new part of a network belongs here,
a new family of Hugging Face models into `hugging_face`. Nothing here knows rewards,
advantages or losses.

Choices that were measured on XLA:CPU alone, for the first profile of an accelerator to
question. Each stands at its place again, marked "XLA:CPU":

    attention.KeyValue          heads and samples share one axis of the cache
    attention_cached.part_sizes blocks of the cache are arrays of their own
    attention.attend_causally   short prompts are copied for each sample; queries go in
                                at most 4 blocks
    rotary.rotary_table         a barrier, so that sines are computed once
    projection.join_projections q, k, v and gate, up are one product while decoding
    transformer.decode_step     caches are written after the scan over layers, or before
                                they are read where there is no scan
    config.unroll               up to 8 layers side by side
"""

from rljax.model import hugging_face, language_model, shapes
from rljax.model.config import DecoderConfig, Experts
from rljax.model.decoder import decoder_policy
from rljax.model.language_model import Model
from rljax.model.rotary import (
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    YarnScaling,
)

__all__ = [
    "DecoderConfig",
    "Experts",
    "LinearScaling",
    "Llama3Scaling",
    "LongScaling",
    "Model",
    "YarnScaling",
    "decoder_policy",
    "hugging_face",
    "language_model",
    "shapes",
]
