"""NumPy on the host: problems, their encoding, streams of batches, tokenizers.

`problem` reads, `encode` turns problems into prompts, `stream` makes endless batches of
them. `tokenizer` loads tokenizers, `token_ids` checks their ids against a policy,
`control_token` keeps text from being read as control tokens, `chat` writes messages by
a chat template, `held_out` splits a data set, and `relabel` expands one by goals.

A new format is a function that returns `list[Problem]`. Nothing here knows models,
devices or rewards.
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
