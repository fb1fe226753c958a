"""Verifiers: what turns completions into rewards.

In the graph, `(prompts, samples) -> Verdict` without leaving the device: `number`,
`last_number`, `number_after`, `exact`, `contains`, and `judged` for your own. `twin`
has the same ones in plain Python; `pooled` runs any Python function in a pool of
processes.
"""

from rljax.verify.graph.match import contains, exact
from rljax.verify.graph.numeral import last_number, number, number_after
from rljax.verify.graph.text import (
    Text,
    Verifier,
    answers,
    decode,
    decode_host,
    find,
    find_last,
    judged,
)
from rljax.verify.graph.vocabulary import TokenBytes, token_bytes
from rljax.verify.host import twin
from rljax.verify.host.pooled import pooled

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
