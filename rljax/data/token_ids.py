"""Checks that every token id of a run has a row in the policy's embedding.

An id without a row gives NaN in a compiled program, which cannot tell which id it was.
So the ids are checked on the host before the first step. Fewer tokens than rows are
fine: many models have more rows than their tokenizer has tokens.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from rljax.types import Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_tokenizer(tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> None:
    """Raises ValueError if a token of the tokenizer has no row in the embedding.

    Args:
      vocab_size: rows of the embedding.
    """
    tokens = tokenizer.get_vocab()  # with added tokens; ids may have gaps
    beyond = {i: token for token, i in tokens.items() if i >= vocab_size}
    if beyond:
        shown = ", ".join(f"{beyond[i]!r} ({i})" for i in sorted(beyond)[:4])
        raise ValueError(
            f"tokenizer must have at most vocab_size={vocab_size} tokens, got"
            f" {len(tokens)}, and ids below that, but the policy's embedding has no row"
            f" for {shown}; take the tokenizer the model was trained with, or a model"
            " whose embedding was made larger."
        )


def check_prompts(prompts: Prompts, vocab_size: int) -> None:
    """Raises ValueError if a token that will be read has no row in the embedding.

    It checks prompts up to their length, demonstrations and stored answers under their
    masks, solutions up to their last piece, and privileged prompts. All other entries
    are padding and may be anything.

    Args:
      prompts: NumPy arrays with N rows.
      vocab_size: rows of the embedding.
    """
    width = prompts.tokens.shape[1]
    for row, length in enumerate(np.asarray(prompts.length).tolist()):
        if not 1 <= length <= width:
            raise ValueError(
                f"every prompt must have 1 to {width} tokens, but that of row {row} has"
                f" {length}; encode it again."
            )
    for name, tokens, read in _read(prompts):
        tokens = np.asarray(tokens)
        bad = np.argwhere(read & ((tokens < 0) | (tokens >= vocab_size)))
        if len(bad):
            row = int(bad[0][0])
            raise ValueError(
                f"{name}: every token that is read must be an id in [0, {vocab_size}),"
                f" the rows of the policy's embedding, but row {row} (problem"
                f" {int(prompts.id[row])}) has {int(tokens[tuple(bad[0])])}, and"
                f" {len(bad)} tokens in all lie outside; encode the problems with the"
                " tokenizer the model was trained with."
            )


def _read(prompts: Prompts) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, token ids, mask of those that are read), for all arrays of token ids."""

    def upto(tokens, length):
        return np.arange(tokens.shape[1]) < np.asarray(length)[:, None]

    data = prompts.data
    yield "prompts", prompts.tokens, upto(prompts.tokens, prompts.length)
    for name in ("completion", "answers"):
        if name in data:
            yield name, data[name], np.asarray(data[f"{name}_mask"])
    if "privileged" in data:
        told = data["privileged"]
        yield "privileged", told, upto(told, data["privileged_length"])
    if "solution" in data:
        hint = data["solution"]
        yield "solution", hint, upto(hint, np.max(data["solution_ends"], -1))
