"""Prompts from files, and the endless stream of batches that a run trains on.

Everything here is NumPy on the host. Symbols: `N` problems of a data set, `K` training
steps per dispatch, `P` prompts per step, `S` prompt tokens, `T` completion tokens,
`A` bytes of the longest answer.
"""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from rljax import check, digest, strict_json
from rljax.data import control_token, held_out
from rljax.types import Prompts

if TYPE_CHECKING:
    import grain
    from transformers import PreTrainedTokenizerBase

MapFn = Callable[[Prompts, np.random.Generator], Prompts]


class Problem(NamedTuple):
    """A question, its reference answer and, where there is one, a worked solution."""

    question: str
    answer: str
    demonstration: str | None = None


class EncodingReport(NamedTuple):
    """What `encode_prompts` kept and dropped; `str(report)` is a line for the log.

    num_problems, num_kept: problems given and kept.
    num_long_prompts, num_long_completions: problems dropped because of their prompt;
      and, of the others, because of their demonstration.
    longest_prompt, longest_completion: tokens, over all problems.
    num_repeated: kept problems whose question an earlier one has, too.
    num_spelled: kept problems in whose text a control token is spelled out; it is read
      as text.
    """

    num_problems: int
    num_kept: int
    num_long_prompts: int
    num_long_completions: int
    longest_prompt: int
    longest_completion: int
    num_repeated: int = 0
    num_spelled: int = 0

    def __str__(self) -> str:
        text = (
            f"kept {self.num_kept} of {self.num_problems} problems; dropped"
            f" {self.num_long_prompts} for their prompt (longest"
            f" {self.longest_prompt} tokens) and {self.num_long_completions} for their"
            f" demonstration (longest {self.longest_completion} tokens)"
        )
        if self.num_repeated:
            text += f"; {self.num_repeated} repeat the question of an earlier one"
        if self.num_spelled:
            text += f"; {self.num_spelled} spell a control token, read as plain text"
        return text


def read_jsonl(
    path: str | os.PathLike,
    question: str = "question",
    answer: str = "answer",
    *,
    demonstration: str | None = None,
    answer_after: str | None = None,
) -> list[Problem]:
    """The problems of a file with one JSON object per line; blank lines are skipped.

    Args:
      question, answer: names of the fields to read.
      demonstration: name of the field with a worked solution; None reads none.
      answer_after: the answer is what follows the last such marker in its field,
        without surrounding white space: "####" for GSM8K. None takes the field as is.

    Raises:
      ValueError: with file and line, if a line is not a JSON object (see
        `strict_json`), a field is missing, not a string, blank, or no text (half a
        surrogate pair), or the marker is not there; if no line is left.
    """
    problems = []
    with open(path, "rb") as lines:  # bytes, so that bad UTF-8 is found in its line
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{os.fspath(path)}:{number}"
            row = _json_object(line, where)
            text = _field(row, answer, where)
            if answer_after is not None:
                text = _after(text, answer_after, where)
            problem = Problem(_field(row, question, where), text)
            if demonstration is not None:
                worked = _field(row, demonstration, where)
                problem = problem._replace(demonstration=worked)
            problems.append(problem)
    if not problems:
        raise ValueError(
            f"{os.fspath(path)} must hold at least one JSON object, got an empty file;"
            " check the path or write the file again."
        )
    return problems


def encode_prompts(
    problems: Sequence[Problem],
    tokenizer: "PreTrainedTokenizerBase",
    max_prompt_tokens: int,
    *,
    template: str = "{question}",
    max_completion_tokens: int | None = None,
) -> tuple[Prompts, EncodingReport]:
    """Problems as prompts of tokens; too long ones are dropped, never cut.

    `S` is `max_prompt_tokens`, so that every split of a data set has one shape. A
    prompt begins with the tokenizer's begin token if the tokenizer puts one there by
    itself (and the template does not already contain it). Only the template's control
    tokens are control tokens: one spelled out in a question or demonstration is text.

    Args:
      max_prompt_tokens: longest prompt that is kept, begin token included.
      template: the prompt's text, with {question} where the question goes. Other
        braces are plain text.
      max_completion_tokens: longest demonstration that is kept, end token included;
        None leaves demonstrations out.

    Returns:
      Prompts of N rows: `id` is the problem's place in `problems`; `data["answer"]`
      u8[N, A] its answer in zero-padded UTF-8; with `max_completion_tokens` = T also
      `data["completion"]` i32[N, T], the demonstration and the end token, and
      `data["completion_mask"]` bool[N, T]. And the report.

    Raises:
      ValueError: for a template without {question}, an empty prompt, a missing
        answer or demonstration, with the problem's number for text that is not UTF-8
        or that the tokenizer does not know, or when nothing is short enough.
    """
    if control_token.QUESTION not in template:
        raise ValueError(
            f"template must contain {{question}}, got {template!r}; put it where the"
            " question belongs."
        )
    _require_text(problems, template)
    questions = [p.question for p in problems]
    prompts, spelled = _encode_with_begin(tokenizer, questions, template)
    _require_all(problems, prompts, "prompt", "write a question or a longer template")
    answers = [p.answer for p in problems]
    _require_all(problems, answers, "reference answer", "write one")
    fits = np.array([len(ids) <= max_prompt_tokens for ids in prompts], bool)
    short = np.ones_like(fits)
    completions = []
    if max_completion_tokens is not None:
        completions, more = _encode_demonstrations(tokenizer, problems)
        spelled = {*spelled, *more}
        short = np.array([len(c) <= max_completion_tokens for c in completions], bool)
    (kept,) = np.nonzero(fits & short)
    report = EncodingReport(
        num_problems=len(problems),
        num_kept=len(kept),
        num_long_prompts=int(np.sum(~fits)),
        num_long_completions=int(np.sum(fits & ~short)),
        longest_prompt=max(map(len, prompts), default=0),
        longest_completion=max(map(len, completions), default=0),
        num_repeated=held_out.num_repeated([questions[i] for i in kept]),
        num_spelled=len(spelled & set(kept.tolist())),
    )
    if not len(kept):
        raise ValueError(
            f"encode_prompts must keep at least one problem, but {report}; raise"
            " max_prompt_tokens or max_completion_tokens."
        )
    tokens, mask = _pad([prompts[i] for i in kept], max_prompt_tokens)
    data = {"answer": answer_bytes([answers[i] for i in kept])}
    if max_completion_tokens is not None:
        rows = [completions[i] for i in kept]
        data["completion"], data["completion_mask"] = _pad(rows, max_completion_tokens)
    length = mask.sum(-1, dtype=np.int32)
    ids = kept.astype(np.int32)
    return Prompts(tokens=tokens, length=length, id=ids, data=data), report


def answer_bytes(answers: Sequence[str]) -> np.ndarray:
    """u8[N, A]: the answers in UTF-8, zero-padded to the longest.

    Raises:
      ValueError: if an answer is no UTF-8 or holds a zero byte, which would end it.
    """
    for answer in answers:
        if why := strict_json.no_text(answer):
            raise ValueError(f"an answer must be text, but {why}: {answer!r}.")
    padded = np.array([a.encode() for a in answers])  # dtype S pads with zeros
    return padded.view(np.uint8).reshape(len(answers), -1)


def _unchanged(prompts: Prompts, rng: np.random.Generator) -> Prompts:
    return prompts


def stream(
    prompts: Prompts,
    *,
    num_prompts: int,
    seed: int,
    steps_per_dispatch: int = 1,
    map_fn: MapFn = _unchanged,
    process_index: int = 0,
    process_count: int = 1,
) -> "Stream":
    """The endless shuffled stream of training batches over a data set.

    Each epoch is a new permutation, cut into steps of `num_prompts` prompts. No prompt
    comes twice in an epoch; what is left at its end (less than a step) sits it out,
    so no step ever holds a prompt twice: its samples would be the same, too. A step
    depends on `seed` and its number alone, not on steps_per_dispatch or processes.

    Args:
      prompts: the data set, N rows of NumPy arrays.
      num_prompts: prompts of one training step, over all processes; at most N.
      seed: in [0, 2**32).
      steps_per_dispatch: `K`, the training steps of one item.
      map_fn: `(prompts [P, ...], rng) -> prompts`, applied to every step with a
        generator of its own, keyed by (seed, step): draws fresh demonstrations.
      process_index, process_count: this host's place; it gets the process_index-th of
        process_count equal blocks of every step, as
        `jax.make_array_from_process_local_data` wants them.

    Returns:
      An iterator over `Prompts` of NumPy arrays [K, num_prompts / process_count, ...].
      `get_state()` is a small JSON-able dict, the number of steps handed out and a
      fingerprint of `prompts`; after `set_state(state)` on an equally built stream the
      continuation is exact, also with another steps_per_dispatch. A state of other
      prompts is a ValueError.

    Raises:
      ValueError: for sizes that do not fit each other.
    """
    import grain

    check.kind("prompts", prompts, Prompts, "encode_prompts(...)[0]")
    check.count("num_prompts", num_prompts, low=0)
    check.count("seed", seed, low=0, high=2**32 - 1)
    check.count("steps_per_dispatch", steps_per_dispatch)
    check.function("map_fn", map_fn, "prompts, rng")
    (size, *others) = {len(leaf) for leaf in jax.tree.leaves(prompts)}
    if others:
        raise ValueError(
            f"all arrays of prompts must have the same number of rows, got {size} and"
            f" {others}; build them together."
        )
    _check_stream(size, num_prompts, steps_per_dispatch, process_index, process_count)
    share = num_prompts // process_count
    mine = slice(process_index * share, (process_index + 1) * share)
    steps = grain.MapDataset.source(_Steps(size, num_prompts, seed))
    steps = steps.map(lambda rows: _take(prompts, rows)).random_map(map_fn, seed=seed)
    steps = steps.map(lambda step: _take(step, mine))
    # No threads: a dispatch costs the host a few ms, which the device's own
    # asynchrony hides, and threads do not go with processes forked by a verifier.
    # Batching after to_iter_dataset keeps the state in steps, whatever K is.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    batches = iter(steps.to_iter_dataset(options).batch(steps_per_dispatch))
    return Stream(batches, digest.fingerprint(prompts))


class Stream:
    """What `stream` returns: grain's iterator, and the data it is a position in."""

    def __init__(self, batches: "grain.DatasetIterator", fingerprint: str):
        self._batches, self._fingerprint = batches, fingerprint

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Prompts:
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        return {"prompts": self._fingerprint, "place": self._batches.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        if state["prompts"] != self._fingerprint:
            raise ValueError(
                "the encoded prompts must be those that the state was saved with, of"
                f" fingerprint {state['prompts']}, got {self._fingerprint}; bring back"
                " the data, tokenizer and template, or start another run."
            )
        self._batches.set_state(state["place"])


class _Steps:
    """The rows i64[P] of every training step: a random-access source without end."""

    def __init__(self, size: int, num_prompts: int, seed: int):
        self._num_prompts = num_prompts
        self._steps_per_epoch = size // num_prompts
        # Not grain's shuffle: it goes row by row in Python, and seeds its epochs with
        # seed + epoch, so that runs with neighbouring seeds would share orders.
        self._order = functools.lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng((seed, epoch)).permutation(size)
        )

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> np.ndarray:
        epoch, step = divmod(step, self._steps_per_epoch)
        start = step * self._num_prompts
        return self._order(epoch)[start : start + self._num_prompts]


def _check_stream(size, num_prompts, steps_per_dispatch, process_index, process_count):
    if not 1 <= num_prompts <= size:
        raise ValueError(
            f"num_prompts must be in [1, {size}], the size of the data set, got"
            f" {num_prompts}; lower num_prompts or bring more problems."
        )
    if steps_per_dispatch < 1:
        raise ValueError(
            f"steps_per_dispatch must be positive, got {steps_per_dispatch}; raise it."
        )
    if not 0 <= process_index < process_count or num_prompts % process_count:
        raise ValueError(
            "process_index must be in [0, process_count) and process_count divide"
            f" num_prompts, got {process_index}, {process_count} and {num_prompts};"
            " pass jax.process_index() and jax.process_count() and a multiple of it."
        )


def _take(prompts: Prompts, rows: np.ndarray | slice) -> Prompts:
    return jax.tree.map(lambda leaf: leaf[rows], prompts)


def _json_object(line: bytes, where: str) -> dict:
    try:
        row = strict_json.loads(line)
    except ValueError as error:  # broken JSON and broken UTF-8
        raise ValueError(
            f"{where} must be a JSON object, but {error}; repair the line."
        ) from error
    if not isinstance(row, dict):
        raise ValueError(
            f"{where} must be a JSON object, got {type(row).__name__}; write one"
            ' {"field": "text", ...} per line.'
        )
    return row


def _field(row: dict, name: str, where: str) -> str:
    if name not in row:
        raise ValueError(
            f"{where} must have a field {name!r}, it has {sorted(row)}; pass the"
            " names of the fields to read_jsonl."
        )
    text = row[name]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"{where}: field {name!r} must be a string with text in it, got {text!r}"
            f" ({type(text).__name__}); write it as a JSON string."
        )
    if why := strict_json.no_text(text):
        raise ValueError(
            f"{where}: field {name!r} must be text, but {why}; write the line again"
            " from its source."
        )
    return text


def _after(text: str, marker: str, where: str) -> str:
    _, found, answer = text.rpartition(marker)
    if not found or not answer.strip():
        raise ValueError(
            f"{where}: an answer must follow the marker {marker!r}, got a text ending"
            f" in {text[-60:]!r}; repair the line or pass another answer_after."
        )
    return answer.strip()


def _encode_with_begin(tokenizer, questions: list[str], template: str):
    """Encodes with the begin token in front where the tokenizer's convention has one.

    Not with add_special_tokens=True: some tokenizers would also append their end token.
    """
    encoded, spelled = control_token.encode(tokenizer, questions, template)
    begin = tokenizer.bos_token_id
    if begin is not None and tokenizer("")["input_ids"][:1] == [begin]:
        encoded = [ids if ids[:1] == [begin] else [begin, *ids] for ids in encoded]
    return encoded, set(spelled)


def _encode_demonstrations(tokenizer, problems: Sequence[Problem]):
    worked = [p.demonstration or "" for p in problems]
    _require_all(problems, worked, "demonstration", "read the field that has it")
    encoded, spelled = control_token.encode(tokenizer, worked, control_token.QUESTION)
    return [[*ids, tokenizer.eos_token_id] for ids in encoded], spelled


def _require_text(problems: Sequence[Problem], template: str):
    for i, problem in enumerate(problems):
        for name, text in problem._asdict().items():
            if why := strict_json.no_text(text or ""):
                raise ValueError(
                    f"every problem must be text, but of number {i} the {name}'s {why};"
                    " write it again from its source."
                )
    if why := strict_json.no_text(template):
        raise ValueError(f"template must be text, but {why}; pass it as UTF-8.")


def _require_all(problems, values, what: str, how: str):
    for i, (problem, value) in enumerate(zip(problems, values, strict=True)):
        if not value:
            raise ValueError(
                f"every problem must have a {what}, but number {i} has none:"
                f" {problem}; {how}."
            )


def _pad(rows: list[list[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows as i32[N, width], padded with 0 on the right, and their bool[N, width]."""
    length = np.array([len(row) for row in rows])
    mask = np.arange(width) < length[:, None]
    tokens = np.zeros((len(rows), width), np.int32)
    tokens[mask] = np.concatenate(rows)
    return tokens, mask
