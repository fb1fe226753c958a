"""Problems as prompts of tokens, with their answers and demonstrations.

Symbols: `N` problems, `S` prompt tokens, `T` completion tokens, `A` bytes of the
longest answer.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rljax import strict_json
from rljax.data import chat as chats
from rljax.data import control_token, held_out
from rljax.data.chat import Chat
from rljax.data.problem import Problem, Tokens, question_text
from rljax.types import Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EncodingReport(NamedTuple):
    """What `encode_prompts` kept and dropped; `str(report)` is a line for the log.

    num_problems, num_kept: problems given and kept.
    num_long_prompts: problems dropped because their prompt is too long.
    num_long_completions: of the others, those with a demonstration that is too long.
    longest_prompt, longest_completion: tokens, over all problems.
    num_repeated: kept problems with the same question as an earlier one.
    num_spelled: kept problems whose text spells a control token; it is read as plain
      text.
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


def encode_prompts(
    problems: Sequence[Problem],
    tokenizer: "PreTrainedTokenizerBase",
    max_prompt_tokens: int,
    *,
    template: str = "{question}",
    chat: Chat | None = None,
    max_completion_tokens: int | None = None,
) -> tuple[Prompts, EncodingReport]:
    """Encodes problems as prompts; problems that are too long are dropped, never cut.

    `S` is `max_prompt_tokens`, so that all splits of a data set have one shape. If the
    tokenizer starts texts with a begin token, so does the prompt, unless the template
    already contains it. Control tokens are recognised in the template only; in a
    question or demonstration they are plain text. A question of token ids is the whole
    prompt; nothing is added to it.

    Args:
      max_prompt_tokens: longest prompt that is kept, begin token included.
      template: the prompt's text, with {question} where the question goes. Other
        braces are plain text.
      chat: turns questions into conversations, and these into prompts by the
        tokenizer's chat template. `template` is then the text of the user's message, in
        which control tokens are plain text as well. None: questions must not be
        conversations.
      max_completion_tokens: T, longest demonstration that is kept, end token included;
        None leaves demonstrations out.

    Returns:
      (prompts, report). The prompts have N rows: `id` is the problem's index in
      `problems`; `data["answer"]` u8[N, A] is its answer in zero-padded UTF-8. With
      `max_completion_tokens` there are also `data["completion"]` i32[N, T], the
      demonstration and the end token, and `data["completion_mask"]` bool[N, T].

    Raises:
      ValueError: for a template without {question}, an empty prompt, a missing answer
        or demonstration; for text that is not UTF-8 or unknown to the tokenizer, with
        the problem's number; for what `chat.encode` refuses; or if no problem is short
        enough.
    """
    _require_template(template)
    _require_text(problems, template)
    questions = [p.question for p in problems]
    prompts, spelled = _encode_questions(tokenizer, questions, template, chat)
    _require_all(problems, prompts, "prompt", "write a question or a longer template")
    answers = [p.answer for p in problems]
    _require_all(problems, answers, "reference answer", "write one")
    fits = np.array([len(ids) <= max_prompt_tokens for ids in prompts], bool)
    short = np.ones_like(fits)
    completions = []
    if max_completion_tokens is not None:
        completions, more = _encode_demonstrations(tokenizer, problems, chat)
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
      ValueError: if an answer is not UTF-8 or contains a zero byte, which would end it.
    """
    for answer in answers:
        if why := strict_json.no_text(answer):
            raise ValueError(f"an answer must be text, but {why}: {answer!r}.")
    padded = np.array([a.encode() for a in answers])  # dtype S pads with zeros
    return padded.view(np.uint8).reshape(len(answers), -1)


def _encode_questions(tokenizer, questions, template: str, chat: Chat | None):
    """(token ids of the prompts, indices of questions that spell control tokens)."""
    encoded = [list(q.ids) if isinstance(q, Tokens) else [] for q in questions]
    # Empty questions are skipped: a chat template would make a prompt even of them.
    others = [
        n
        for n, q in enumerate(questions)
        if not isinstance(q, Tokens) and (q or chat is None)
    ]
    asked = [questions[n] for n in others]
    if chat is not None:
        asked = [chats.conversation(question, chat, template) for question in asked]
        rows, spelled = chats.encode(tokenizer, asked, chat)
    else:
        for n, question in zip(others, asked, strict=True):
            if not isinstance(question, str):
                raise ValueError(
                    "without chat a question must be a text or token ids, but number"
                    f" {n} is a conversation; pass chat=Chat()."
                )
        rows, spelled = _encode_with_begin(tokenizer, asked, template)
    for n, row in zip(others, rows, strict=True):
        encoded[n] = row
    return encoded, {others[i] for i in spelled}


def _encode_with_begin(tokenizer, questions: list[str], template: str):
    """Encodes, with a begin token in front if the tokenizer uses one.

    add_special_tokens=True would be wrong: some tokenizers also append their end token.
    """
    encoded, spelled = control_token.encode(tokenizer, questions, template)
    begin = tokenizer.bos_token_id
    if begin is not None and tokenizer("")["input_ids"][:1] == [begin]:
        encoded = [ids if ids[:1] == [begin] else [begin, *ids] for ids in encoded]
    return encoded, spelled


def _encode_demonstrations(tokenizer, problems: Sequence[Problem], chat: Chat | None):
    worked = [p.demonstration or "" for p in problems]
    _require_all(problems, worked, "demonstration", "read the field that has it")
    encoded, spelled = control_token.encode(tokenizer, worked, control_token.QUESTION)
    end = tokenizer.eos_token_id
    if chat is not None:
        end = chats.end_token(tokenizer, chat)
    return [[*ids, end] for ids in encoded], spelled


def _require_template(template: str):
    if control_token.QUESTION not in template:
        raise ValueError(
            f"template must contain {{question}}, got {template!r}; put it where the"
            " question belongs."
        )


def _require_text(problems: Sequence[Problem], template: str):
    for i, problem in enumerate(problems):
        for name, value in problem._asdict().items():
            text = value if isinstance(value, str | None) else question_text(value)
            if why := strict_json.no_text(text or ""):
                raise ValueError(
                    f"every problem must be text, but in the {name} of number {i}"
                    f" {why}; write it again from its source."
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
    """(tokens i32[N, width], padded with 0 on the right, mask bool[N, width])."""
    length = np.array([len(row) for row in rows])
    mask = np.arange(width) < length[:, None]
    tokens = np.zeros((len(rows), width), np.int32)
    tokens[mask] = np.concatenate(rows)
    return tokens, mask
