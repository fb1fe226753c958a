"""Reading numbers: cases by hand, and graph against host on many texts."""

import decimal

import jax
import numpy as np
import pytest
import twin
import verify_fakes
from hypothesis import given
from hypothesis import strategies as st

from rljax.verify import last_number, number, token_bytes
from rljax.verify.host.numeral import read_last_number

pytestmark = pytest.mark.usefixtures("strict")
BYTES = verify_fakes.BYTES
TOKENIZERS = verify_fakes.tokenizers()

# Text and the value of the whole of it; None: it is no number. Every text is compared
# with every value: the plain numbers are what a wrong reading of others would give.
WHOLE = {
    **{n: n for n in ("5", "-5", "12", "100", "10000", "100000", "1000000", "1234567")},
    **{n: n for n in ("1.2", "2.3", "1.0005", "10")},
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
    "\u22125": "-5",  # U+2212, the minus of typesetters
    "\u2212 5": None,
    "\u2212$5": None,
    "\u20135": None,  # an en dash, and a full-width minus
    "\uff0d5": None,
    "5\u2212": None,
    "1\0": None,
    "1\u00a0": None,  # U+00A0, no ASCII whitespace: str.strip() would take it off
}
# Text and the value of the last number in it; None: what its last digit belongs to is
# no number. The plain numbers are what a careless reading of the others would give.
LAST = {
    **{n: n for n in ("10.20", "1234567", "12345", "123.5", "51000", "1123456", "-3")},
    **{n: n for n in ("2", "22", "20", "23.5", "34567", "567", "123456", "100200")},
    **{n: n for n in ("5100", "100.25", "99")},
    "#### 18": "18",
    "####18": "18",
    "The answer is 18.": "18",
    "It costs $1,234.50?": "1234.5",
    "-$3": "-3",
    "$-3": "-3",
    "= -3": "-3",
    "=-3": "-3",
    "+3 apples": "3",
    "is .5": "0.5",
    "5.": "5",
    "18%": "18",
    "**18** so": "18",
    "**Answer:** 18": "18",
    "(18)": "18",
    "<b>18</b>": "18",
    "18" + " so" * 40: "18",
    "7 or\n" + "9" * 24: "9" * 24,
    "5-3": None,
    "5 -3": None,
    "x-3": None,
    "(2)-3": None,
    "--3": None,
    "10,20": None,
    "5,x12": None,
    "1,234,5": None,
    "1,23.5": None,
    "12,34,567": None,
    "1234,567": None,
    "1234,123,456": None,
    "0.5,100": None,
    "0.5,100,200": None,
    "so...5,100": None,
    "1.5,100.25": None,
    "is.5": None,
    "so..5": None,
    "1.2.3": None,
    "1/2": None,
    "1e5": None,
    "a1b22c": None,
    "7 " + "9" * 25: None,
    "7 " + "9" * 24: None,
    "7 1" + ",000" * 8: None,
    "7 1234" + ",000" * 7 + ",001": None,
    "7 1234" + ",000" * 9: None,
    "-": None,
    "": None,
    "no number": None,
}


PAIRS = {
    f"{name}{after.decode()}": (
        jax.jit(make(BYTES, after=after)),
        twin_of(BYTES, after=after),
    )
    for name, make, twin_of in (
        ("number", number, twin.number),
        ("last_number", last_number, twin.last_number),
    )
    for after in (b"", b"=")
}


def agree_with_cases(name, cases):
    """Every text against every value: right exactly where the values are equal."""
    values = sorted({v for v in cases.values() if v is not None}, key=decimal.Decimal)
    some = verify_fakes.saying([[text.encode() for text in cases]] * len(values))
    prompts = verify_fakes.asking(values)
    correct = verify_fakes.assert_twins_agree(*PAIRS[name], prompts, some)
    for p, value in enumerate(values):
        got = [text for text, right in zip(cases, correct[p], strict=True) if right]
        assert got == [text for text, v in cases.items() if v == value], value


def right(pair, answer, texts, unfinished=()):
    """Which of the texts are right, in batches of one shape, compiled once."""
    some = verify_fakes.saying([[*texts, *[b""] * (8 - len(texts))]], num_tokens=32)
    finished = np.array([[text not in unfinished for text in range(8)]])
    prompts = verify_fakes.asking([answer.ljust(24)])
    some = some.replace(finished=finished)
    correct = verify_fakes.assert_twins_agree(*pair, prompts, some)
    return [text for text, yes in zip(texts, correct[0], strict=False) if yes]


def test_whole_texts_are_numbers_or_wrong():
    # Floats would take 24 digits for equal to 23; Decimal() accepts 1_0, nan and 1e5.
    agree_with_cases("number", WHOLE)


def test_the_last_number_is_found_and_bounded():
    # The last number of a text that is a number is that number.
    numbers = {text: value for text, value in WHOLE.items() if value is not None}
    agree_with_cases("last_number", LAST | numbers)


@pytest.mark.parametrize("name", ["number", "last_number"])
def test_equal_values_are_equal_and_neighbours_are_not(name):
    small = [b"1000", b"1000.01", b"-1000", b"01,000.0"]
    assert right(PAIRS[name], "1000", small) == [b"1000", b"01,000.0"]
    assert right(PAIRS[name], "-0.0", [b"0", b"-0", b"1", b"0.1"]) == [b"0", b"-0"]
    large = [b"1" + b"0" * 22 + b"1", b"1" + b"0" * 23, b"1" + b"0" * 22]
    assert right(PAIRS[name], "1" + "0" * 23, large) == large[1:2]


@pytest.mark.parametrize("name", ["number", "last_number"])
@pytest.mark.parametrize("answer", ["$5", "five", "", "5 apples"])
def test_an_answer_that_is_no_number_is_never_matched(name, answer):
    assert right(PAIRS[name], answer, [b"5", b"$5", b"five", b"", b"5 apples"]) == []


def test_only_what_follows_the_first_marker_is_read():
    texts = [b"3+5=8", b"3+5=9=8", b"8", b"8=", b"0=5-8", b"=-8", b"==8"]
    assert right(PAIRS["number="], "8", texts) == [b"3+5=8"]
    assert right(PAIRS["last_number="], "8", texts) == [
        b"3+5=8",
        b"3+5=9=8",
        b"==8",
    ]


def test_what_stands_before_the_marker_decides_no_sign():
    # Looking back past the marker `a` would take the sign of `a-3` for an operator.
    pair = jax.jit(last_number(BYTES, after=b"a")), twin.last_number(BYTES, after=b"a")
    assert right(pair, "-3", [b"a-3", b"3a-3"]) == [b"a-3", b"3a-3"]


def test_a_number_cut_at_the_limit_is_wrong():
    # 18 could have become 18.5, 18 1/2 or 18 million: the text must show that it ended.
    texts = [b"18", b"18 ", b"18.", b"18 so", b"18 so ", b"18\n", b"18 = x", b" 18"]
    cut, ended = texts[:4], texts[4:7]
    right_ones = right(PAIRS["last_number"], "18", texts, unfinished=range(7))
    assert right_ones == [*ended, b" 18"]
    assert right(PAIRS["last_number"], "18", texts) == texts
    assert right(PAIRS["number"], "18", cut, unfinished=range(4)) == []


def test_a_text_longer_than_the_bound_is_wrong():
    # Cutting silently would read 12 in 123 as a right answer.
    pair = jax.jit(number(BYTES, max_bytes=2)), twin.number(BYTES, max_bytes=2)
    assert right(pair, "12", [b"12", b"123", b"12 "]) == [b"12"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name != "byte-level"))
        for name in TOKENIZERS
    ],
)
def test_graph_and_host_agree_on_a_damaged_corpus(name):
    tokenizer = TOKENIZERS[name]
    table = token_bytes(tokenizer)
    prompts, some = verify_fakes.corpus(
        tokenizer, num_prompts=150, num_samples=20, num_tokens=36
    )
    for make, twin_of in ((number, twin.number), (last_number, twin.last_number)):
        pair = jax.jit(make(table)), twin_of(table)
        correct = verify_fakes.assert_twins_agree(*pair, prompts, some)
        assert 0.02 < correct.mean() < 0.9  # neither side is always the same


NUMBERISH = st.lists(
    st.sampled_from([*"0019,,..-+$ =)a\n\0é", "12", "345", "000", "000", "0" * 20]),
    max_size=20,
).map(lambda parts: "".join(parts).encode()[:48])


@pytest.mark.parametrize("name", PAIRS)
@given(texts=st.lists(NUMBERISH | st.binary(max_size=48), min_size=32, max_size=32))
def test_graph_and_host_agree_on_any_bytes(name, texts):
    # Answers are read off the texts, so that both verdicts occur.
    answers = np.zeros((32, 32), np.uint8)
    for row, text in zip(answers, texts, strict=True):
        value = read_last_number(text) or 0
        row[:] = list(f"{value:f}".encode().ljust(32, b"\0"))
    prompts = verify_fakes.asking(["?"] * 32).replace(data={"answer": answers})
    rows = [[own, other] for own, other in zip(texts, texts[1:] + texts[:1])]
    some = verify_fakes.saying(rows, num_tokens=49)
    verify_fakes.assert_twins_agree(*PAIRS[name], prompts, some)


@pytest.mark.slow
def test_compiled_or_not_the_verdict_is_the_same():
    tokenizer = TOKENIZERS["character"]
    prompts, some = verify_fakes.corpus(
        tokenizer, num_prompts=20, num_samples=5, num_tokens=30
    )
    verify = last_number(token_bytes(tokenizer), after=b"=")
    eager, compiled = verify(prompts, some), jax.jit(verify)(prompts, some)
    assert compiled.correct.tolist() == eager.correct.tolist()
