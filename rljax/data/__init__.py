"""NumPy on the host: problems, their encoding, streams of batches, tokenizers."""

from rljax.data.problem import (
    EncodingReport,
    Problem,
    Stream,
    answer_bytes,
    encode_prompts,
    read_jsonl,
    stream,
)

__all__ = [
    "EncodingReport",
    "Problem",
    "Stream",
    "answer_bytes",
    "encode_prompts",
    "read_jsonl",
    "stream",
]
