"""What a field of a data file may hold beside text: numbers, messages, token ids."""

import json

import numpy as np
import pytest

from rljax import data
from rljax.data import held_out, tokenizer

ASK = data.Message("user", "1+1?")
BE = data.Message("system", "be short")


def read(folder, *rows: str):
    path = folder / "problems.jsonl"
    path.write_text("\n".join(rows))
    return data.read_jsonl(path)


@pytest.mark.parametrize(
    ("written", "want"),
    [
        ("27", "27"),
        ("27.0", "27"),
        ("-27.000", "-27"),
        ("0.10", "0.10"),
        ("1e3", "1e3"),
        ("27.0e1", "27.0e1"),
        ("12345678901234567890.5", "12345678901234567890.5"),
    ],
)
def test_a_number_is_the_text_that_the_file_holds(tmp_path, written, want):
    # By way of a float these would be 27.0, 0.1, 1000.0 and 1.2345678901234567e+19.
    (got,) = read(tmp_path, f'{{"question": "a", "answer": {written}}}')
    assert got == data.Problem("a", want) and type(got.answer) is str


def test_messages_and_token_ids_are_questions(tmp_path):
    said = [message._asdict() for message in (BE, ASK)]
    rows = [{"question": q, "answer": 2} for q in ("1+1?", said, [5, 0, 7])]
    got = read(tmp_path, *map(json.dumps, rows))
    assert [p.question for p in got] == ["1+1?", (BE, ASK), data.Tokens((5, 0, 7))]


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ([], "a list of messages"),
        (["1+1?"], "a list of messages"),
        ([{"role": "user"}], "a list of messages"),
        ([{"role": "user", "content": "a", "name": "b"}], "these two keys alone"),
        (
            [{"role": "user", "content": " "}],
            r"question\[0\]\['content'\] must be a st",
        ),
        ([{"role": "user", "content": 3}], r"'content'\] must .* 3 \(number\)"),
        ([{"role": "user", "content": "\0"}], r"'content'\] must be text, but"),
        (
            [ASK._asdict(), {"role": "assistant", "content": "2"}],
            "last message .* must be by the user.* got role 'assistant'",
        ),
        ([1, -2], "must hold token ids, whole numbers from 0, got 1, -2"),
        ([1.5], "must hold token ids"),
        ([10**12], "must hold token ids"),
        ([1, "2"], "one of token ids"),
        ([True, True], "one of token ids"),
    ],
)
def test_lists_of_anything_else_name_file_and_line(tmp_path, question, told):
    bad = json.dumps({"question": question, "answer": "2"})
    good = json.dumps({"question": "a", "answer": "2"})
    with pytest.raises(ValueError, match=rf"problems\.jsonl:2\b.*{told}"):
        read(tmp_path, good, bad)


def test_token_ids_are_the_whole_prompt():
    letters = tokenizer.character_tokenizer("abcd")
    problems = [data.Problem(data.Tokens((5, 2, 2)), "x"), data.Problem("b", "y")]
    prompts, _ = data.encode_prompts(problems, letters, 4, template="a{question}")
    assert prompts.tokens.tolist() == [[5, 2, 2, 0], [2, 3, 0, 0]]
    assert prompts.length.tolist() == [3, 2]


def test_a_question_is_the_same_as_text_and_as_a_message():
    # Trained on in one form and tested in the other, it would be known.
    same = ["1+1?", (ASK,), (BE, ASK), " 1+1?\n"]
    assert {held_out.same_question(q) for q in same} == {"1+1?"}
    other = [(ASK, data.Message("assistant", "2"), ASK), data.Tokens((1, 1)), "tokens"]
    assert len({held_out.same_question(q) for q in [*same, *other]}) == 4


def test_what_another_file_tests_is_in_no_part():
    questions = [f"q{i % 10}" for i in range(40)]
    split = held_out.by_question(
        questions, (3,), seed=0, elsewhere=["q1", " q7 ", "no such"]
    )
    used = [questions[i] for i in (*split.held_out[0], *split.train)]
    assert set(used) == {f"q{i}" for i in range(10)} - {"q1", "q7"}
    # 8 rows of the two, and 3 more of each question that is held out.
    assert (split.num_left_out, split.num_elsewhere) == (8 + 9, 8)
    assert (
        "17 left out that repeat a held-out one, 8 of them from the test data"
        in str(split)
    )
    with pytest.raises(ValueError, match="that no other file tests than the 8 "):
        held_out.by_question(questions, (8,), seed=0, elsewhere=["q1", "q7"])


def test_different_questions_are_drawn_once_each():
    questions = [f"q{i % 5}" for i in range(20)]
    rows = held_out.different(questions, 3, seed=1)
    assert len({questions[i] for i in rows}) == len(rows) == 3
    # More than there are: all of them.
    assert len(held_out.different(questions, 99, seed=1)) == 5
    np.testing.assert_array_equal(rows, held_out.different(questions, 99, seed=1)[:3])
