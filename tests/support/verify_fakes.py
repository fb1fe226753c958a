"""What the tests of verifiers share: tables, and texts as samples."""

import functools
import pathlib
import random

import jax.numpy as jnp
import numpy as np

from rljax.data.encode import answer_bytes
from rljax.data.tokenizer import character_tokenizer
from rljax.types import Prompts, Samples
from rljax.verify import TokenBytes, token_bytes

SHARED = pathlib.Path(__file__).parents[2].parent / "shared"
END = 256
BYTES = TokenBytes((*(bytes([byte]) for byte in range(256)), b""))  # token = byte
CHARACTERS = "0123456789+-.,$=() #ab\n\t"


def asking(answers: list[str]) -> Prompts:
    """Prompts with these reference answers."""
    count = len(answers)
    return Prompts(
        tokens=jnp.zeros((count, 1), jnp.int32),
        length=jnp.ones(count, jnp.int32),
        id=jnp.arange(count, dtype=jnp.int32),
        data={"answer": jnp.asarray(answer_bytes(answers))},
    )


def samples(tokens, mask, finished=None) -> Samples:
    """Samples of these tokens; finished unless said otherwise."""
    shape = np.shape(tokens)[:2]
    finished = np.ones(shape, bool) if finished is None else finished
    return Samples(
        tokens=jnp.asarray(tokens, jnp.int32),
        mask=jnp.asarray(mask, bool),
        source=jnp.zeros(shape, jnp.int32),
        finished=jnp.asarray(finished),
    )


def saying(rows: list[list[bytes]], num_tokens: int | None = None) -> Samples:
    """[P, G] texts as samples over `BYTES`, with digits as garbage in the padding."""
    longest = max(len(text) for row in rows for text in row) + 1
    size = longest if num_tokens is None else num_tokens
    tokens = np.full((len(rows), len(rows[0]), size), ord("7"), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for p, row in enumerate(rows):
        for g, text in enumerate(row):
            said = [*text, END][:size]
            tokens[p, g, : len(said)] = said
            mask[p, g, : len(said)] = True
    return samples(tokens, mask)


@functools.cache
def byte_level_tokenizer():
    """A byte-level BPE of a few merges, as Qwen's and Llama 3's are."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    text = "the answer is 12,345.00 = 12 345 -1,000 naïve 数学 " * 3
    backend.train_from_iterator([text], trainer)
    backend.add_tokens(["<think>", " \n"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>"
    )


@functools.cache
def stories_tokenizer():
    """The sentencepiece-like tokenizer of stories260k; None where it is absent."""
    from transformers import PreTrainedTokenizerFast

    folder = SHARED / "models" / "stories260k"
    if not folder.is_dir():
        return None
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def tokenizers() -> dict:
    """One tokenizer of each kind that is here."""
    every = {
        "character": character_tokenizer(CHARACTERS),
        "byte-level": byte_level_tokenizer(),
        "sentencepiece": stories_tokenizer(),
    }
    return {name: t for name, t in every.items() if t is not None}


def corpus(tokenizer, *, num_prompts: int, num_samples: int, num_tokens: int, seed=0):
    """(prompts, samples) of numbers well and badly written, and of random tokens.

    Most completions are made from the answer, so that a good part is right; tokens and
    masks are then damaged: holes, empty masks, unfinished rows, ids out of range.
    """
    draw = random.Random(seed)
    answers = [_numeral(draw) for _ in range(num_prompts)]
    table = token_bytes(tokenizer)
    shape = (num_prompts, num_samples, num_tokens)
    tokens, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for p, g in np.ndindex(*shape[:2]):
        if draw.random() < 0.15:
            said = [
                draw.randrange(-1, len(table.pieces) + 2)
                for _ in range(draw.randrange(num_tokens + 1))
            ]
        else:
            text = _completion(draw, answers[p])
            said = tokenizer.encode(text, add_special_tokens=False)[:num_tokens]
        kept = [draw.random() > 0.02 for _ in said]
        tokens[p, g, : len(said)], mask[p, g, : len(said)] = said, kept
    finished = np.array([draw.random() > 0.1 for _ in range(shape[0] * shape[1])])
    return asking(answers), samples(tokens, mask, finished.reshape(shape[:2]))


def _numeral(draw: random.Random) -> str:
    size = draw.choice([1, 1, 2, 3, 4, 6, 9, 12, 23, 24, 25])
    whole = "".join(draw.choice("0123456789") for _ in range(size))
    if draw.random() < 0.3:
        whole = f"{int(whole):,}"
    fraction = draw.choice(["", "", "", ".0", ".5", ".25", ".500"])
    return draw.choice(["", "", "", "-", "+"]) + whole + fraction


def _completion(draw: random.Random, answer: str) -> str:
    number = answer if draw.random() < 0.8 else _numeral(draw)
    before = draw.choice(
        ["", "", "", "=", "=", "=", " ", "#### ", "a b\n", "$", "-", "3,"]
    )
    after = draw.choice(["", "", "", " ", ".", "\n", "=", ",", ".0", ",000", " ab"])
    said = list(before + number + after)
    while draw.random() < 0.3 and said:
        place = draw.randrange(len(said))
        said[place] = draw.choice(
            ["", "-", ".", ",", "$", "0", "1", " ", ")", "a", "="]
        )
    return "".join(said)


def assert_twins_agree(verify, twin, prompts, some) -> np.ndarray:
    """Graph (compiled) and host give the same verdicts; returns `correct`."""
    got, want = verify(prompts, some), twin(prompts, some)
    wrong = np.argwhere(np.asarray(got.correct) != want.correct)
    assert not wrong.size, f"twins differ at {wrong[:5].tolist()}"
    np.testing.assert_array_equal(got.reward, want.reward)
    assert not np.any(got.failed) and not np.any(want.failed)
    return want.correct
