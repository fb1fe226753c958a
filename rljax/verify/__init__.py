"""Verifiers: functions that turn completions into rewards.

A verifier is a function `(prompts, samples) -> Verdict`. Those in `graph` are part of
the compiled program; make your own with `text_verifier`. Those in `host` are Python
functions that run in a pool of processes, made by `pooled`. Verifiers know texts and
answers; they must not know policies, advantages or the loop.
"""

from rljax.verify.graph.match import contains, exact
from rljax.verify.graph.numeral import last_number, number, number_after
from rljax.verify.graph.text import (
    Text,
    answers,
    decode,
    decode_host,
    find,
    find_last,
    text_verifier,
)
from rljax.verify.graph.vocabulary import TokenBytes, token_bytes
from rljax.verify.host.numeral import (
    read_last_number,
    read_number,
    read_number_after,
)
from rljax.verify.host.pooled import pooled

__all__ = [
    "Text",
    "TokenBytes",
    "answers",
    "contains",
    "decode",
    "decode_host",
    "exact",
    "find",
    "find_last",
    "last_number",
    "number",
    "number_after",
    "pooled",
    "read_last_number",
    "read_number",
    "read_number_after",
    "text_verifier",
    "token_bytes",
]
