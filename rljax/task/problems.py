"""Makes a task from your own problems, such as those of a JSONL file."""

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
    """The three parts of a data set.

    train, validation, test: prompts for training, for choosing settings, for reporting.
    notes: lines for the log: what was dropped, how the parts were made.
    """

    train: Prompts
    validation: Prompts
    test: Prompts
    notes: tuple[str, ...]

    def task(self, verify) -> Task:
        """The task of these parts with a verifier."""
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
    """Encodes problems for a model, in three parts that share no question.

    Args:
      max_prompt_tokens, template, chat, max_completion_tokens: as in
        `data.encode_prompts`.
      num_validation, num_test: number of problems in these parts.
      test: problems of a test file. The test part is then at most `num_test` different
        ones of them, drawn at random; problems that repeat any question of the file are
        left out of training and validation. None takes the test part from `problems`.
      privileged: adds the data that `policy.privileged_teacher` reads: the same prompts
        with the worked solution after the question. Needs `max_completion_tokens`.

    Raises:
      ValueError: if too few problems are left, or a token id has no row in the model's
        embedding.
    """
    # Encoded together, so that all parts have arrays of one size and distinct ids.
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
    """(rows of the chosen problems of the test file, a line for the log)."""
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
    """Adds data["privileged"], the prompts with their solutions, and their length."""
    kept = [problems[i] for i in prompts.id]
    told = [p._replace(question=_with_solution(p)) for p in kept]
    # Question and solution fit separately; joining them may add a few tokens.
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


def _with_solution(problem: data.Problem) -> Question:
    """The question with the worked solution after it."""
    question, worked = problem.question, problem.demonstration
    if isinstance(question, str):
        return f"{question}\n{worked}"
    if isinstance(question, Tokens):
        raise ValueError(
            "a privileged teacher needs questions of text, got token ids; write them"
            " as text."
        )
    *before, last = question
    return (*before, last._replace(content=f"{last.content}\n{worked}"))


def text_of(model: Model) -> verify.TokenBytes:
    """The bytes of each token; stop tokens have none, and stop strings end the text.

    Not every stop token is called special by its tokenizer, so they are removed here.
    """
    pieces = enumerate(verify.token_bytes(model.tokenizer).pieces)
    ends = tuple(text.encode() for text in model.stop_strings)
    return verify.TokenBytes(
        tuple(b"" if i in model.stop_tokens else piece for i, piece in pieces), ends
    )


def spelled_by(model: Model) -> tuple[bytes, ...]:
    """The bytes of each token, with control tokens spelled out, for stop strings.

    The stop string "<|im_end|>" then also matches the control token of this name.
    """
    pieces = list(verify.token_bytes(model.tokenizer).pieces)
    for i in control_token.special_ids(model.tokenizer):
        pieces[i] = model.tokenizer.convert_ids_to_tokens(i).encode()
    return tuple(pieces)


def require_numbers(problems: Sequence[data.Problem]) -> None:
    """Raises ValueError if an answer is not a number, which nothing could match."""
    bad = [p.answer for p in problems if verify.read_number(p.answer.encode()) is None]
    if bad:
        raise ValueError(
            f"answers must be numbers for a verifier of numbers, but {len(bad)} of"
            f" {len(problems)} are not, such as {bad[0]!r}; read the text after a"
            " marker (answer_after), or compare text (verify.exact)."
        )
