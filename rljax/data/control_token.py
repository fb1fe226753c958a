"""Encoding in which only the template can write control tokens.

A tokenizer reads `<|im_end|>` as the token that ends a turn, wherever it stands. In a
user's question it would end the turn, or the whole prompt. So control tokens are
recognised in the template only; a question is read as plain text.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION = "{question}"
"""The part of a template that is replaced by the question."""


class Encoded(NamedTuple):
    """Texts as token ids.

    ids: the token ids of each text.
    spelled: indices of texts whose question spells a control token; it was encoded as
      plain text.
    """

    ids: list[list[int]]
    spelled: list[int]


def encode(
    tokenizer: "PreTrainedTokenizerBase", questions: Sequence[str], template: str
) -> Encoded:
    """The questions in a template, as tokens; nothing is added before or after.

    If a question spells no control token, the ids are those of the tokenizer itself.

    Args:
      template: text with {question} where the question goes.

    Raises:
      ValueError: with its number, if a text cannot be encoded.
    """
    if not questions:
        return Encoded([], [])
    own = [_ids(tokenizer, part) for part in template.split(QUESTION)]
    special = special_ids(tokenizer)
    expected = [i for part in own for i in part if i in special]
    texts = [template.replace(QUESTION, question) for question in questions]
    ids = all_ids(tokenizer, dict(enumerate(texts)))
    more = [
        n for n, row in enumerate(ids) if [i for i in row if i in special] != expected
    ]
    if not more:
        return Encoded(ids, [])

    # An unknown character gives a special token as well, also when read as text.
    def write(n: int, names: dict[str, str]) -> str:
        return renamed(template, names).replace(QUESTION, questions[n])

    as_text = as_written(tokenizer, {n: texts[n] for n in more}, write)
    spelled = [n for n, row in zip(more, as_text, strict=True) if row != ids[n]]
    for n, row in zip(more, as_text, strict=True):
        ids[n] = row
    return Encoded(ids, spelled)


def special_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """The ids of control tokens: those that the tokenizer calls special."""
    added = tokenizer.added_tokens_decoder
    return {i for i, token in added.items() if token.special} | set(
        tokenizer.all_special_ids
    )


def _ids(tokenizer, text: str) -> list[int]:
    return all_ids(tokenizer, {0: text})[0] if text else []


def all_ids(tokenizer, texts: dict[int, str]) -> list[list[int]]:
    """The texts as tokens, with control tokens recognised; nothing is added.

    Raises:
      ValueError: with its number, if a text cannot be encoded.
    """

    def encode(texts):
        return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    return _encoded(encode, texts)


def _encoded(encode_fn, texts: dict[int, str]):
    """`encode_fn` of the texts; an error names the text that cannot be encoded."""
    try:
        return encode_fn(list(texts.values()))
    except Exception:  # tokenizers raises no finer kind
        for n, text in texts.items():
            try:
                encode_fn([text])
            except Exception as error:
                raise ValueError(
                    f"the tokenizer must know every character, but text number {n}"
                    f" cannot be encoded ({error}): {text[:200]!r}; change the text."
                ) from error
        raise


def as_written(
    tokenizer: "PreTrainedTokenizerBase",
    texts: dict[int, str],
    write: Callable[[int, dict[str, str]], str],
) -> list[list[int]]:
    """Encodes with renamed control tokens; only the template uses the new names.

    No question spells the new names, so all of it is plain text. To encode the parts
    between control tokens separately would be simpler but gives other tokens: several
    tokenizers mark the beginning of a text, or strip blanks around control tokens.

    Args:
      texts: by number, with the tokenizer's own names of control tokens.
      write: (number, new name of each control token) -> the text with the new names in
        its template.
    """
    import tokenizers

    if not tokenizer.is_fast:
        raise ValueError(
            "a question spells a control token, which only a fast tokenizer"
            f" (PreTrainedTokenizerFast) reads as text, got {type(tokenizer).__name__};"
            f" convert it, or change question number {next(iter(texts))}."
        )
    mark = unused(texts.values())
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    special = [t for t in description["added_tokens"] if t["special"]]
    names = {t["content"]: f"{mark}{n}>" for n, t in enumerate(special)}
    backend = tokenizers.Tokenizer.from_str(json.dumps(_renamed(description, names)))
    ours = {backend.token_to_id(names[t["content"]]): t["id"] for t in special}
    written = {n: write(n, names) for n in texts}
    rows = _encoded(
        lambda t: backend.encode_batch(t, add_special_tokens=False), written
    )
    return [[ours.get(i, i) for i in row.ids] for row in rows]


def unused(texts: Iterable[str], mark: str = "<control") -> str:
    """A prefix for new names that no text contains."""
    texts = list(texts)
    while any(mark in text for text in texts):
        mark += "l"
    return mark


def renamed(text: str, names: dict[str, str]) -> str:
    """Replaces each key of `names` in the text by its value, longest keys first."""
    longest_first = sorted(names, key=lambda name: -len(name))
    known = "|".join(re.escape(name) for name in longest_first)
    return re.sub(known, lambda m: names[m[0]], text) if names else text


def _renamed(description: dict, names: dict[str, str]) -> dict:
    """A tokenizer.json with renamed control tokens, also in its model's vocabulary."""
    model = dict(description["model"])
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(k, k): i for k, i in vocabulary.items()}
    else:  # Unigram would find a control token in plain text by its old name
        model["vocab"] = [[names.get(k, k), score] for k, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    added = [
        {**t, "content": names.get(t["content"], t["content"])}
        for t in description["added_tokens"]
    ]
    nothing = {"post_processor": None, "truncation": None, "padding": None}
    return {**description, **nothing, "model": model, "added_tokens": added}
