"""A task from problems of one's own, such as those of a JSONL file."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rljax import data, verify
from rljax.data import control_token, held_out, token_ids
from rljax.data.problem import Question, Tokens
from rljax.layout import take
from rljax.model import Model
from rljax.task.base import Task
from rljax.types import Prompts


class Parts(NamedTuple):
    """Problems to train on, to choose settings by, to report; and what was dropped."""

    train: Prompts
    validation: Prompts
    test: Prompts
    notes: tuple[str, ...]

    def task(self, verify) -> Task:
        """With how they are judged, the task."""
        return Task(self.train, self.validation, self.test, verify)


def split(
    problems: Sequence[data.Problem],
    model: Model,
    *,
    max_prompt_tokens: int,
    num_validation: int,
    num_test: int,
    test: Sequence[data.Problem] | None = None,
    template: str = "{question}",
    chat: data.Chat | None = None,
    max_completion_tokens: int | None = None,
    privileged: bool = False,
) -> Parts:
    """Problems as prompts for a model, in three parts that share no question.

    Args:
      max_prompt_tokens, template, chat, max_completion_tokens: as in
        `data.encode_prompts`.
      num_validation, num_test: problems that are held out.
      test: problems to report, instead of some of `problems`: at most `num_test`
        different ones, drawn at random. Whatever repeats one of all their questions is
        neither trained on nor chosen by.
      privileged: adds what `policy.privileged_teacher` reads: the same prompts with the
        worked solution after the question. Needs `max_completion_tokens`.

    Raises:
      ValueError: if too few problems are left, or a token is none of the model's.
    """
    # Encoded together: all parts have arrays of one size, and ids of their own.
    everything = [*problems, *(test or ())]
    prompts, encoding = data.encode_prompts(
        everything,
        model.tokenizer,
        max_prompt_tokens,
        template=template,
        chat=chat,
        max_completion_tokens=max_completion_tokens,
    )
    if privileged:
        prompts = _with_solutions(prompts, everything, model, template, chat)
    token_ids.check_prompts(prompts, model.config.vocab_size)
    notes = [str(encoding)]
    try:
        if test is None:
            questions = [everything[i].question for i in prompts.id]
            parts = held_out.by_question(questions, (num_validation, num_test), seed=0)
            (validation, tested), train = parts.held_out, parts.train
        else:
            kept = np.asarray(prompts.id) < len(problems)
            questions = [everything[i].question for i in prompts.id[kept]]
            elsewhere = [problem.question for problem in test]
            parts = held_out.by_question(
                questions, (num_validation,), seed=0, elsewhere=elsewhere
            )
            (validation,), train = parts.held_out, parts.train
            tested, note = _tested(prompts, everything, kept, num_test)
            notes.append(note)
    except ValueError as error:
        raise ValueError(f"{error} Or lower num_validation or num_test.") from error
    train, validation, test_part = (
        take(prompts, rows) for rows in (train, validation, tested)
    )
    return Parts(train, validation, test_part, (*notes, str(parts)))


def _tested(prompts: Prompts, everything, kept: np.ndarray, num_test: int):
    """Rows of the problems that the test file brought, and a line for the log."""
    (rows,) = np.nonzero(~kept)
    if not len(rows):
        raise ValueError(
            "a problem of the test data must be short enough to be kept, got none;"
            " raise max_prompt_tokens."
        )
    questions = [everything[i].question for i in prompts.id[rows]]
    chosen = rows[held_out.different(questions, num_test, seed=0)]
    return chosen, f"{len(chosen)} of {len(rows)} problems of the test data to report"


def _with_solutions(
    prompts: Prompts, problems, model: Model, template: str, chat: data.Chat | None
) -> Prompts:
    """Adds data["privileged"], the prompts that tell the solution, and its length."""
    kept = [problems[i] for i in prompts.id]
    told = [p._replace(question=_told(p)) for p in kept]
    # Both fit by themselves; a few tokens more may come from where they meet.
    width = prompts.tokens.shape[1] + prompts.data["completion"].shape[1] + 8
    more, _ = data.encode_prompts(
        told, model.tokenizer, width, template=template, chat=chat
    )
    if len(more.id) < len(kept):
        raise ValueError(
            f"question and worked solution must fit into {width} tokens together, got"
            f" {len(kept) - len(more.id)} that do not; lower the longest completion."
        )
    added = {"privileged": more.tokens, "privileged_length": more.length}
    return prompts.replace(data={**prompts.data, **added})


def _told(problem: data.Problem) -> Question:
    """The question with the worked solution after it."""
    question, worked = problem.question, problem.demonstration
    if isinstance(question, str):
        return f"{question}\n{worked}"
    if isinstance(question, Tokens):
        raise ValueError(
            "a teacher that is told the solution must have questions of text, got"
            " token ids; write them as text."
        )
    *before, last = question
    return (*before, last._replace(content=f"{last.content}\n{worked}"))


def text_of(model: Model) -> verify.TokenBytes:
    """The bytes of each token, none for those that end a completion.

    Not all of these are called special by their tokenizer. Stop strings end the text.
    """
    pieces = enumerate(verify.token_bytes(model.tokenizer).pieces)
    ends = tuple(text.encode() for text in model.stop_strings)
    return verify.TokenBytes(
        tuple(b"" if i in model.stop_tokens else piece for i, piece in pieces), ends
    )


def spelled_by(model: Model) -> tuple[bytes, ...]:
    """The bytes of each token with control tokens spelled out: for stop strings.

    Who stops at "<|im_end|>" means the control token of this name, too.
    """
    pieces = list(verify.token_bytes(model.tokenizer).pieces)
    for i in control_token.special_ids(model.tokenizer):
        pieces[i] = model.tokenizer.convert_ids_to_tokens(i).encode()
    return tuple(pieces)


def require_numbers(problems: Sequence[data.Problem]) -> None:
    """Raises ValueError if an answer is no number: it could never be matched."""
    bad = [p.answer for p in problems if verify.read_number(p.answer.encode()) is None]
    if bad:
        raise ValueError(
            f"answers must be numbers for a verifier of numbers, but {len(bad)} of"
            f" {len(problems)} are not, got such as {bad[0]!r}; read what follows a"
            " marker (answer_after), or compare text (verify.exact)."
        )
