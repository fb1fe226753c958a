"""Verifiers: what turns completions into rewards.

In the graph, `(prompts, samples) -> Verdict` without leaving the device: `number`,
`last_number`, `number_after`, `exact`, `contains`, and `judged` for your own. `twin`
has the same ones in plain Python; `pooled` runs any Python function in a pool of
processes.
"""

from rljax.verify import twin
from rljax.verify.host import pooled
from rljax.verify.match import contains, exact
from rljax.verify.numeral import last_number, number, number_after
from rljax.verify.text import (
    Text,
    Verifier,
    answers,
    decode,
    decode_host,
    find,
    find_last,
    judged,
)
from rljax.verify.vocabulary import TokenBytes, token_bytes

__all__ = [
    "Text",
    "TokenBytes",
    "Verifier",
    "answers",
    "contains",
    "decode",
    "decode_host",
    "exact",
    "find",
    "find_last",
    "judged",
    "last_number",
    "number",
    "number_after",
    "pooled",
    "token_bytes",
    "twin",
]
