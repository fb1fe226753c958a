"""Reading numbers: cases by hand, and graph against host on many texts."""

import decimal
import json

import jax
import numpy as np
import pytest
import verify_fakes
from hypothesis import given
from hypothesis import strategies as st

from rljax.verify import last_number, number, token_bytes, twin

pytestmark = pytest.mark.usefixtures("strict")
BYTES, SHARED = verify_fakes.BYTES, verify_fakes.SHARED
TOKENIZERS = verify_fakes.tokenizers()

# Text and the value of the whole of it; None: it is no number.
WHOLE = {
    "18": "18",
    " 18\r\n": "18",
    "007": "7",
    "1.50": "1.5",
    ".5": "0.5",
    "-0": "0",
    "-0.0": "0",
    "+3": "3",
    "-1,234.50": "-1234.5",
    "1,000": "1000",
    "0,012": "12",
    "12,345,678": "12345678",
    "123456789.123456789": "123456789.123456789",
    "9" * 24: "9" * 24,
    "0" * 23 + "5": "5",
    "0." + "0" * 22 + "5": "0." + "0" * 22 + "5",
    "100,000,000,000,000,000,000,000": "1" + "0" * 23,
    "9" * 25: None,
    "0" * 24 + "5": None,
    "0." + "0" * 23 + "5": None,
    "1,000,000,000,000,000,000,000,000": None,
    "": None,
    " ": None,
    "-": None,
    ".": None,
    "5.": None,
    "--5": None,
    "+-5": None,
    "- 5": None,
    "5-3": None,
    "$5": None,
    "-$5": None,
    "$-5": None,
    "5%": None,
    "1 000": None,
    "1\n2": None,
    "1,00": None,
    "1,0000": None,
    "1000,000": None,
    "12,34,567": None,
    "1,,000": None,
    ",100": None,
    "1.2.3": None,
    "1.000,5": None,
    "1e5": None,
    "0x10": None,
    "x18": None,
    "\u0661\u0662": None,  # Arabic digits: Python's str and \d take them for 12
    "\u22125": None,  # U+2212, the minus of typesetters
    "1\0": None,
    "1\u00a0": None,  # U+00A0, no ASCII whitespace: str.strip() would take it off
}
# Text and the value of the last number in it.
LAST = {
    "#### 18": "18",
    "The answer is 18.": "18",
    "It costs $1,234.50!": "1234.5",
    "-$3": "-3",
    "$-3": "-3",
    "5-3": "3",
    "5 -3": "-3",
    "= -3": "-3",
    "x-3": "3",
    "(2)-3": "3",
    "--3": "-3",
    "+3 apples": "3",
    "10,20": "20",
    "1,234,5": "5",
    "1,23.5": "23.5",
    "12,34,567": "34567",
    "1234,567": "567",
    "1234,123,456": "123456",
    "0.5,100": "100",
    "0.5,100,200": "100200",
    "so...5,100": "5100",
    "1.5,100.25": "100.25",
    "is .5": "0.5",
    "is.5": "0.5",
    "so..5": "5",
    "1.2.3": "2.3",
    "5.": "5",
    "18%": "18",
    "1/2": "2",
    "1e5": "5",
    "a1b22c": "22",
    "7 " + "9" * 25: None,
    "7 " + "9" * 24: "9" * 24,
    "7 1" + ",000" * 8: None,
    "7 1234" + ",000" * 7 + ",001": "1",
    "7 1234" + ",000" * 9: None,
    "-": None,
    "": None,
    "no number": None,
    "18" + " so" * 40: "18",
}


def agree_with_cases(verify, twin, cases):
    """Every text against every value: right exactly where the values are equal."""
    values = sorted({v for v in cases.values() if v is not None}, key=decimal.Decimal)
    some = verify_fakes.saying([[text.encode() for text in cases]] * len(values))
    correct = verify_fakes.assert_twins_agree(
        verify, twin, verify_fakes.asking(values), some
    )
    for p, value in enumerate(values):
        got = [text for text, right in zip(cases, correct[p], strict=True) if right]
        assert got == [text for text, v in cases.items() if v == value], value


def test_whole_texts_are_numbers_or_wrong():
    # Floats would take 0.1 + 25 digits for equal; Decimal() accepts 1_0, nan and e.
    agree_with_cases(number(BYTES), twin.number(BYTES), WHOLE)


def test_the_last_number_is_found_and_bounded():
    agree_with_cases(last_number(BYTES), twin.last_number(BYTES), LAST)


def test_the_whole_text_of_a_number_is_its_last_number():
    numbers = {text: value for text, value in WHOLE.items() if value is not None}
    agree_with_cases(last_number(BYTES), twin.last_number(BYTES), numbers)


def test_equal_values_are_equal_and_neighbours_are_not():
    answers = ["1000", "1,000.0", "-0", "1" + "0" * 23]
    texts = [b"1000", b"1000.01", b"-1000", b"0", b"1" + b"0" * 22 + b"1", b"9" * 24]
    some = verify_fakes.saying([texts] * 4)
    correct = verify_fakes.assert_twins_agree(
        number(BYTES), twin.number(BYTES), verify_fakes.asking(answers), some
    )
    assert np.argwhere(correct).tolist() == [[0, 0], [1, 0], [2, 3]]


def test_an_answer_that_is_no_number_is_never_matched():
    some = verify_fakes.saying([[b"5", b"$5", b""]] * 3)
    prompts = verify_fakes.asking(["$5", "five", ""])
    for make, twin_of in ((number, twin.number), (last_number, twin.last_number)):
        correct = verify_fakes.assert_twins_agree(
            make(BYTES), twin_of(BYTES), prompts, some
        )
        assert not correct.any()


def test_only_what_follows_the_first_marker_is_read():
    texts = [b"3+5=8", b"3+5=9=8", b"8", b"8=", b"0=5-8", b"=-8", b"==8"]
    some, prompts = verify_fakes.saying([texts]), verify_fakes.asking(["8"])
    correct = verify_fakes.assert_twins_agree(
        number(BYTES, after=b"="), twin.number(BYTES, after=b"="), prompts, some
    )
    assert correct.tolist() == [[True, False, False, False, False, False, False]]
    correct = verify_fakes.assert_twins_agree(
        last_number(BYTES, after=b"="),
        twin.last_number(BYTES, after=b"="),
        prompts,
        some,
    )
    assert correct.tolist() == [[True, True, False, False, True, False, True]]


def test_what_stands_before_the_marker_decides_no_sign():
    # Of `5=-3` only `-3` is read. Looking back past the marker would make the sign
    # of `a-3` after the marker `a` an operator.
    some, prompts = verify_fakes.saying([[b"a-3"]]), verify_fakes.asking(["-3"])
    for make, twin_of in ((number, twin.number), (last_number, twin.last_number)):
        correct = verify_fakes.assert_twins_agree(
            make(BYTES, after=b"a"), twin_of(BYTES, after=b"a"), prompts, some
        )
        assert correct.all()


def test_a_number_cut_at_the_limit_is_wrong_but_a_cut_text_has_a_last_number():
    some, prompts = verify_fakes.saying([[b"18", b"18"]]), verify_fakes.asking(["18"])
    some = some.replace(finished=np.array([[True, False]]))
    cases = ((number, twin.number), (last_number, twin.last_number))
    for (make, twin_of), want in zip(cases, ([True, False], [True, True]), strict=True):
        correct = verify_fakes.assert_twins_agree(
            make(BYTES), twin_of(BYTES), prompts, some
        )
        assert correct.tolist() == [want]


def test_a_text_longer_than_the_bound_is_wrong():
    # Cutting silently would read 12 in 123 as a right answer.
    some, prompts = verify_fakes.saying([[b"12", b"123"]]), verify_fakes.asking(["12"])
    for make, twin_of in ((number, twin.number), (last_number, twin.last_number)):
        correct = verify_fakes.assert_twins_agree(
            make(BYTES, max_bytes=2), twin_of(BYTES, max_bytes=2), prompts, some
        )
        assert correct.tolist() == [[True, False]]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("after", [b"", b"="], ids=["all", "after"])
def test_graph_and_host_agree_on_a_damaged_corpus(name, after):
    tokenizer = TOKENIZERS[name]
    table = token_bytes(tokenizer)
    prompts, some = verify_fakes.corpus(
        tokenizer, num_prompts=150, num_samples=20, num_tokens=36
    )
    for make, twin_of in ((number, twin.number), (last_number, twin.last_number)):
        correct = verify_fakes.assert_twins_agree(
            make(table, after=after), twin_of(table, after=after), prompts, some
        )
        assert 0.02 < correct.mean() < 0.9  # neither side is always the same


NUMBERISH = st.lists(
    st.sampled_from(
        ["0", "1", "9", "12", "345", "000", ",", ",", ".", "-", "+", "$", " ", "=", ")"]
        + ["a", "\n", "\0", "é", "0" * 20]
    ),
    max_size=20,
).map(lambda parts: "".join(parts).encode()[:48])
_VERIFIERS = {
    f"{name}{after}": (jax.jit(make(BYTES, after=after)), twin_of(BYTES, after=after))
    for name, make, twin_of in (
        ("number", number, twin.number),
        ("last_number", last_number, twin.last_number),
    )
    for after in (b"", b"=")
}


@pytest.mark.parametrize("name", _VERIFIERS)
@given(texts=st.lists(NUMBERISH | st.binary(max_size=48), min_size=32, max_size=32))
def test_graph_and_host_agree_on_any_bytes(name, texts):
    # Answers are read off the texts, so that both verdicts occur.
    answers = np.zeros((32, 32), np.uint8)
    for row, text in zip(answers, texts, strict=True):
        value = twin.read_last_number(text) or 0
        row[:] = list(f"{value:f}".encode().ljust(32, b"\0"))
    prompts = verify_fakes.asking(["?"] * 32).replace(data={"answer": answers})
    rows = [[own, other] for own, other in zip(texts, texts[1:] + texts[:1])]
    some = verify_fakes.saying(rows, num_tokens=49)
    verify_fakes.assert_twins_agree(*_VERIFIERS[name], prompts, some)


def test_compiled_or_not_the_verdict_is_the_same():
    tokenizer = TOKENIZERS["character"]
    prompts, some = verify_fakes.corpus(
        tokenizer, num_prompts=20, num_samples=5, num_tokens=30
    )
    verify = last_number(token_bytes(tokenizer), after=b"=")
    eager, compiled = verify(prompts, some), jax.jit(verify)(prompts, some)
    assert compiled.correct.tolist() == eager.correct.tolist()


def gsm8k():
    path = SHARED / "data" / "gsm8k_test.jsonl"
    if not path.is_file():
        pytest.skip("no gsm8k_test.jsonl")
    with path.open() as lines:
        solutions = [json.loads(line)["answer"] for line in lines]
    return solutions, [solution.rpartition("#### ")[2] for solution in solutions]


def test_every_gsm8k_solution_verifies_against_its_answer():
    solutions, answers = gsm8k()
    assert len(solutions) == 1319
    for solution, answer in zip(solutions, answers, strict=True):
        value = twin.read_number(answer.encode())
        assert value is not None, answer
        assert twin.read_last_number(solution.encode()) == value
        assert twin.read_last_number(f"So the answer is ${answer}.".encode()) == value


def test_gsm8k_solutions_verify_in_the_graph():
    # Each solution is right for its own problem and wrong for a shifted one.
    solutions, answers = gsm8k()
    solutions, answers = solutions[:256], answers[:256]
    texts = [s.encode() for s in solutions]
    rows = [[own, other] for own, other in zip(texts, texts[1:] + texts[:1])]
    correct = verify_fakes.assert_twins_agree(
        last_number(BYTES, after=b"####"),
        twin.last_number(BYTES, after=b"####"),
        verify_fakes.asking(answers),
        verify_fakes.saying(rows),
    )
    assert correct[:, 0].all()
    assert correct[:, 1].mean() < 0.1
