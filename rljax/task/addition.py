"""Column addition with working: a task to learn by warm start and RL within minutes.

    718+678=  ->  160913=1396

The working consists of each column's sum from the right, two digits with the carry
included; then come `=`, the answer and the end token. The warm start imitates careless
demonstrations that mostly forget carries. So the imitating policy is wrong more often
than right, also when it decodes greedily, and RL has to reverse a habit.

Symbols: `D` digits of an operand, `P` prompts, `S = 2 D + 2` prompt tokens,
`T = 3 D + 3` completion tokens at most. Arrays may have any leading axes `[...]`.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rljax import verify
from rljax.data import tokenizer as tokenizers
from rljax.model import DecoderConfig, Model, language_model
from rljax.task.base import Task
from rljax.types import Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHARACTERS = "0123456789+="
NUM_TRAIN = 198_976
NUM_HELD_OUT = 900 * 901 // 2 - NUM_TRAIN  # of the unordered pairs of 3-digit numbers
_PAD, _END = (tokenizers.SPECIAL_TOKENS.index(t) for t in ("<pad>", "<end>"))
_ZERO, _PLUS, _EQUALS = (
    len(tokenizers.SPECIAL_TOKENS) + CHARACTERS.index(c) for c in "0+="
)


class Splits(NamedTuple):
    """Disjoint problems: for training, for choosing settings, for reporting."""

    train: Prompts
    validation: Prompts
    test: Prompts


def tokenizer() -> "PreTrainedTokenizerFast":
    """The task's tokenizer of 14 tokens: 12 characters, padding and end."""
    return tokenizers.character_tokenizer(CHARACTERS)


def new_model(num_layers: int, d_model: int, num_heads: int, d_ff: int) -> Model:
    """A small, newly initialised decoder for the task's characters."""
    words = tokenizer()
    config = DecoderConfig(
        vocab_size=len(words),
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=d_model // num_heads,
        d_ff=d_ff,
        rope_theta=100.0,  # slower rotations could not distinguish 20 positions
        initializer_std=d_model**-0.5,  # 0.02 suits widths near 2,000
    )
    return language_model.new(config, words)


def task(num_validation: int, num_test: int) -> Task:
    """3-digit addition with working, judged by the number after the last `=`."""
    parts = splits(num_validation=num_validation, num_test=num_test)
    return Task(
        *parts,
        verify=verify.number(verify.token_bytes(tokenizer()), after=b"="),
        group=("carries", parts.test.data["carries"]),
    )


def splits(
    seed: int = 0,
    *,
    digits: int = 3,
    num_train: int = NUM_TRAIN,
    num_validation: int = 1024,
    num_test: int = 1024,
) -> Splits:
    """Draws the problems of the three splits, held out as unordered pairs.

    Distinct pairs {a, b} are drawn, each in a random order. So a+b and b+a never occur
    both, neither in one split nor in two.

    Args:
      seed: of the draw. Use the same for runs with different seeds, so that test
        problems are never trained on.
      digits: digits of both operands, the first one not 0; in 2..4.
      num_train, num_validation, num_test: problems in each split.

    Returns:
      Prompts as `problems` makes them.

    Raises:
      ValueError: for other digits, or if there are fewer pairs than asked for.
    """
    if not 2 <= digits <= 4:
        raise ValueError(f"digits must be 2, 3 or 4, got {digits}; pass one of these.")
    smallest = 10 ** (digits - 1)
    operands = 9 * smallest
    pairs = operands * (operands + 1) // 2
    sizes = (num_train, num_validation, num_test)
    if sum(sizes) > pairs or min(sizes) < 1:
        raise ValueError(
            f"each split needs a problem and all together at most {pairs}, the pairs"
            f" of {digits}-digit numbers, got {sizes}; ask for fewer or more digits."
        )
    rng = np.random.default_rng(seed)
    pair = rng.choice(pairs, size=sum(sizes), replace=False)
    # Pair number x (x + 1) / 2 + y is {x, y} with y <= x. The square root is exact
    # enough, as the numbers are below 2**29 and float64 is exact up to 2**53.
    larger = ((np.sqrt(8.0 * pair + 1) - 1) // 2).astype(np.int64)
    both = np.stack([larger, pair - larger * (larger + 1) // 2]) + smallest
    a, b = rng.permuted(both, axis=0)
    ends = np.cumsum(sizes)[:-1]
    parts = zip(np.split(a, ends), np.split(b, ends), strict=True)
    train, validation, test = (problems(x, y, digits=digits) for x, y in parts)
    return Splits(train=train, validation=validation, test=test)


def problems(a: np.ndarray, b: np.ndarray, *, digits: int = 3) -> Prompts:
    """The prompts `a+b=` of operands i64[P] with exactly `digits` digits.

    `id` is `a * 10**digits + b`. `data["answer"]` u8[P, D + 1] is the sum in
    zero-padded ASCII. `data["carries"]` i32[P], in 0..D-1, counts the carries into the
    columns 2 to D, which a demonstration may forget.
    """
    operands = np.stack([a, b])
    if operands.min() < 10 ** (digits - 1) or operands.max() >= 10**digits:
        raise ValueError(
            f"operands must have exactly {digits} digits, got numbers from"
            f" {operands.min()} to {operands.max()}; choose others or pass digits."
        )
    powers = 10 ** np.arange(digits)
    first, second = operands[..., None] // powers[::-1] % 10 + _ZERO
    plus, equals = (
        np.full_like(first[:, :1], _PLUS),
        np.full_like(first[:, :1], _EQUALS),
    )
    tokens = np.concatenate([first, plus, second, equals], axis=1)
    due = [np.sum(operands % power, axis=0) >= power for power in powers[1:]]
    answer = np.sum(operands, axis=0).astype(f"S{digits + 1}")
    return Prompts(
        tokens=tokens.astype(np.int32),
        length=np.full(len(tokens), 2 * digits + 2, np.int32),
        id=(operands[0] * 10**digits + operands[1]).astype(np.int32),
        data={
            "answer": answer.view(np.uint8).reshape(len(tokens), digits + 1),
            "carries": np.sum(due, axis=0, dtype=np.int32),
        },
    )


def demonstrate(
    prompts: Prompts, rng: np.random.Generator, forget: float = 0.7
) -> Prompts:
    """Adds careless demonstrations; usable as `map_fn` of `data.stream`.

    Each carry into the columns 2 to D is forgotten independently with probability
    `forget`; working and answer are consistent with the mistake. The last carry is a
    digit of the answer and never forgotten.

    Args:
      prompts: made by `problems`, with any leading axes.
      rng: source of the mistakes.
      forget: a probability.

    Returns:
      The prompts with `data["completion"]` i32[..., T] and `data["completion_mask"]`
      bool[..., T], the end token included.
    """
    if not 0 <= forget <= 1:
        raise ValueError(f"forget must be a probability, got {forget}; use 0 to 1.")
    shape = (*prompts.id.shape, _digits(prompts) - 1)
    return _with_completion(prompts, rng.random(shape) < forget)


def is_right(prompts: Prompts) -> np.ndarray:
    """bool[...]: whether working and answer of each demonstration are right."""
    never = np.zeros((*prompts.id.shape, _digits(prompts) - 1), bool)
    right = _with_completion(prompts, never)
    return np.all(right.data["completion"] == prompts.data["completion"], axis=-1)


def imitation_ceiling(prompts: Prompts, forget: float = 0.7) -> float:
    """The expected share of right demonstrations, those that forget no carry.

    A policy that imitates perfectly reaches this pass@1 and no more.
    """
    return float(np.mean((1 - forget) ** prompts.data["carries"]))


def _digits(prompts: Prompts) -> int:
    return (prompts.tokens.shape[-1] - 2) // 2


def _with_completion(prompts: Prompts, forgotten: np.ndarray) -> Prompts:
    """Adds demonstrations that forget the given carries, bool[..., D - 1]."""
    digits = _digits(prompts)
    a = prompts.tokens[..., :digits] - _ZERO
    b = prompts.tokens[..., digits + 1 : -1] - _ZERO
    columns = a[..., ::-1] + b[..., ::-1]  # from the right, still without carries
    for k in range(1, digits):
        carry = (columns[..., k - 1] >= 10) & ~forgotten[..., k - 1]
        columns[..., k] += carry
    tens, ones = columns // 10 + _ZERO, columns % 10 + _ZERO
    working = np.stack([tens, ones], axis=-1).reshape(*columns.shape[:-1], 2 * digits)
    last = tens[..., -1:]
    equals, end, pad = (np.full_like(last, token) for token in (_EQUALS, _END, _PAD))
    answer = np.concatenate([last, ones[..., ::-1], end], axis=-1)
    # Without a last carry the sum has one digit less: drop the leading 0, pad the end.
    shorter = np.concatenate([answer[..., 1:], pad], axis=-1)
    answer = np.where(last == _ZERO, shorter, answer)
    completion = np.concatenate([working, equals, answer], axis=-1).astype(np.int32)
    length = completion.shape[-1] - (last == _ZERO)
    mask = np.arange(completion.shape[-1]) < length
    added = {"completion": completion, "completion_mask": mask}
    return prompts.replace(data={**prompts.data, **added})
