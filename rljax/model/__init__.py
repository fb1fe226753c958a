"""Networks behind the `Policy` interface. flax lives here and nowhere else.

`Model` is a decoder with its tokenizer and initial parameters; `language_model.new` and
`language_model.load` make one. `shapes` holds the configurations of known models,
without weights. A new part of a network belongs here, and a new family of Hugging Face
models into `hugging_face`. Nothing here knows rewards, advantages or losses.

The following choices were measured on XLA:CPU only; a profile on an accelerator may
overturn them. The code marks each of them "XLA:CPU":

    attention.KeyValue          heads and samples share one axis of the cache
    attention_cached.part_sizes each block of the cache is an array of its own
    attention.attend_causally   short prompts are copied for each sample; queries are
                                split into at most 4 blocks
    rotary.rotary_table         a barrier makes XLA compute the sines only once
    projection.join_projections q, k, v become one product while decoding; so do gate
                                and up
    transformer.decode_step     the cache is written after the scan over layers, or,
                                without a scan, before it is read
    config.unroll               up to 8 layers are unrolled
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
