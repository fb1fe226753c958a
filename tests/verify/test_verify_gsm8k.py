"""GSM8K's own convention, on all of its problems; skipped where the data is absent."""

import json

import jax
import numpy as np
import pytest
import twin
import verify_fakes

from experiments import arithmetic, task
from rljax.verify import last_number, number_after
from rljax.verify.host.numeral import read_last_number, read_number, read_number_after

pytestmark = pytest.mark.usefixtures("strict")
BYTES = verify_fakes.BYTES
MARKER = "#### "
CHECKED = "\nI checked it in 2 ways."


def gsm8k(name):
    path = verify_fakes.SHARED / "data" / name
    if not path.is_file():
        pytest.skip(f"no {name}")
    with path.open() as lines:
        solutions = [json.loads(line)["answer"] for line in lines]
    return solutions, [s.rpartition(MARKER)[2].strip() for s in solutions]


@pytest.mark.parametrize(
    ("name", "count"), [("gsm8k_test.jsonl", 1319), ("gsm8k_train.jsonl", 7473)]
)
def test_every_answer_is_read_as_python_reads_it(name, count):
    solutions, answers = gsm8k(name)
    assert len(solutions) == count
    for solution, answer in zip(solutions, answers, strict=True):
        want, text = int(answer.replace(",", "")), solution.encode()
        assert read_number(answer.encode()) == want, answer
        assert read_last_number(text) == want, solution
        assert read_last_number(f"So it is ${answer}.".encode()) == want
        boxed = f"{solution}\n$\\boxed{{{answer}}}$.{CHECKED}"
        assert read_last_number(boxed.encode()) == want
        for after in ("", CHECKED):
            marked = text + after.encode()
            assert read_number_after(marked, b"####") == want, solution


@pytest.mark.parametrize(
    ("make", "twin_of", "after"),
    [
        (last_number(BYTES), twin.last_number(BYTES), ""),
        (number_after(BYTES, b"####"), twin.number_after(BYTES, b"####"), CHECKED),
    ],
    ids=["last_number", "number_after"],
)
def test_the_graph_reads_every_solution(make, twin_of, after):
    # Each is right for its own answer and wrong for the next problem's.
    solutions, answers = gsm8k("gsm8k_test.jsonl")
    values = [int(answer.replace(",", "")) for answer in answers]
    texts = [(solution + after).encode() for solution in solutions]
    some = verify_fakes.saying([[text] for text in texts])
    graph = jax.jit(make)
    for shift in (0, 1):
        asked = values[shift:] + values[:shift]
        correct = verify_fakes.assert_twins_agree(
            graph, twin_of, verify_fakes.asking([f"{v:<8}" for v in asked]), some
        )
        want = [a == b for a, b in zip(asked, values, strict=True)]
        assert correct[:, 0].tolist() == want


@pytest.mark.parametrize(
    ("flags", "text", "paid"),
    [
        ({"verifier": "number", "after": "####"}, f"so\n#### 18{CHECKED}", "18"),
        ({"verifier": "number", "after": "####"}, "#### 7\n#### 18 eggs", "18"),
        ({"verifier": "number", "after": "\\boxed{"}, f"\\boxed{{18}}{CHECKED}", "18"),
        ({"verifier": "number"}, " 18\n", "18"),
        ({"verifier": "last-number"}, f"\\boxed{{18}}{CHECKED}", "18"),
        ({"verifier": "last-number", "after": "</think>"}, "7</think>is 18.", "18"),
    ],
)
def test_the_flags_of_the_experiment_find_the_answer(flags, text, paid):
    verifier = task.own_verifier(arithmetic.Config(**flags), BYTES)
    some = verify_fakes.saying([[text.encode()]] * 3, num_tokens=48)
    verdict = jax.jit(verifier)(verify_fakes.asking([paid, "7 ", "2 "]), some)
    assert np.asarray(verdict.correct)[:, 0].tolist() == [True, False, False]
