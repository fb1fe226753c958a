"""NumPy on the host: problems, their encoding, streams of batches, tokenizers.

    problem        reads problems from files
    encode         turns problems into prompts of tokens
    chat           the same for messages, by a chat template
    control_token  keeps questions from being read as control tokens
    stream         endless shuffled batches
    held_out       splits a data set
    relabel        expands a data set by goals
    tokenizer      loads tokenizers
    token_ids      checks token ids against the size of the embedding

Support a new format by a function that returns `list[Problem]`. Nothing here knows
models, devices or rewards.
"""

from rljax.data.chat import Chat
from rljax.data.encode import EncodingReport, answer_bytes, encode_prompts
from rljax.data.problem import Message, Problem, Tokens, read_jsonl
from rljax.data.stream import Stream, stream

__all__ = [
    "Chat",
    "EncodingReport",
    "Message",
    "Problem",
    "Stream",
    "Tokens",
    "answer_bytes",
    "encode_prompts",
    "read_jsonl",
    "stream",
]
