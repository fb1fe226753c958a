"""No reward for a piece of a number: graph, twin and a slow exact reader agree."""

import decimal
import fractions

import jax
import number_texts as slow
import numpy as np
import pytest
import twin
import verify_fakes
from hypothesis import given, settings
from hypothesis import strategies as st

from rljax.verify import last_number, number_after

pytestmark = pytest.mark.usefixtures("strict")
BYTES = verify_fakes.BYTES
SIZE, BATCH = 96, 48

READERS = {
    "last": (
        jax.jit(last_number(BYTES)),
        twin.last_number(BYTES),
        slow.last_number,
    ),
    "####": (
        jax.jit(number_after(BYTES, b"####")),
        twin.number_after(BYTES, b"####"),
        lambda text, finished: slow.number_after(text, "####", finished),
    ),
    "boxed": (
        jax.jit(number_after(BYTES, b"\\boxed{")),
        twin.number_after(BYTES, b"\\boxed{"),
        lambda text, finished: slow.number_after(text, "\\boxed{", finished),
    ),
}


# A text, and what the last number, the one after #### and the one in the last box are.
# "" where there is none: then none of its digits may be paid.
TABLE = [
    # Signs: read, or no number; never the opposite one.
    ("The answer is \u22125.", "-5", "", ""),
    ("x = - 5", "", "", ""),
    ("x = \u2212 5", "", "", ""),
    ("You lose -\\$3", "-3", "", ""),
    ("You lose -$3", "-3", "", ""),
    ("You lose $-3", "-3", "", ""),
    ("You lose - \\$3", "", "", ""),
    ("You lose -($3)", "", "", ""),
    ("is \u20135", "", "", ""),
    ("is \u20115", "", "", ""),
    ("is \uff0d5", "", "", ""),
    ("is \u00b15", "", "", ""),
    ("is minus 5", "", "", ""),
    ("is Negative 5", "", "", ""),
    ("is minus $5", "", "", ""),
    ("#### \u22125", "-5", "-5", ""),
    ("#### - 5", "", "", ""),
    ("#### -\\$5", "-5", "-5", ""),
    ("-\\boxed{5}", "", "", ""),
    ("= - \\boxed{5}", "", "", ""),
    ("\\boxed{-5}", "-5", "", "-5"),
    ("\\boxed{- 5}", "", "", ""),
    ("$-\\$5$", "-5", "", ""),
    # Pieces of numbers and of expressions.
    ("\\boxed{10{,}000}", "", "", ""),
    ("\\boxed{10,\\!236}", "", "", ""),
    ("\\boxed{10\\,236}", "", "", ""),
    ("10\u2009236", "", "", ""),
    ("10 236", "", "", ""),
    ("10'236", "", "", ""),
    ("10_236", "", "", ""),
    ("10, 236", "", "", ""),
    ("1/2", "", "", ""),
    ("1 / 2", "", "", ""),
    ("1\u20442", "", "", ""),
    ("\\frac{1}{2}", "", "", ""),
    ("\\frac12", "", "", ""),
    ("\\boxed{\\frac{1}{2}}", "", "", ""),
    ("2 1/2", "", "", ""),
    ("2\u00bd", "", "", ""),
    ("#### 2 1/2", "", "", ""),
    ("#### 2 and 1/2", "", "", ""),
    ("1e3", "", "", ""),
    ("1.5E-3", "", "", ""),
    ("2 \\times 10^3", "", "", ""),
    ("2 \\times 10^{3}", "", "", ""),
    ("2 \\times 10", "", "", ""),
    ("2*10**3", "", "", ""),
    ("2 x 10^3", "", "", ""),
    ("2\u00d710\u00b3", "", "", ""),
    ("#### 2 x 10^3", "", "", ""),
    ("#### 2 \\cdot 10^3", "", "", ""),
    ("#### 5 million", "", "", ""),
    ("5 cm^2", "", "", ""),
    ("5 cm\u00b2", "5", "", ""),
    ("#### 5 cm^2", "", "5", ""),
    ("x_2", "", "", ""),
    ("x_{12}", "", "", ""),
    ("\\sqrt{2}", "", "", ""),
    ("\\boxed{2\\sqrt{3}}", "", "", ""),
    ("\\boxed{2 \\pi}", "", "", ""),
    ("\\boxed{5x}", "", "", ""),
    ("\\boxed{3, 5}", "", "", ""),
    ("\\boxed{5}^2", "", "", ""),
    ("2\\boxed{5}", "", "", ""),
    ("\\boxed{5} \\times 10", "", "", ""),
    ("f(2)", "", "", ""),
    ("5!", "", "", ""),
    ("|-5|", "", "", ""),
    ("1.2.3", "", "", ""),
    ("v2", "", "", ""),
    ("2024-01-02", "", "", ""),
    ("01/02/2024", "", "", ""),
    ("10:30", "", "", ""),
    ("3-5", "", "", ""),
    ("3\u20135", "", "", ""),
    ("3 to 5", "", "", ""),
    ("3 or 5", "", "", ""),
    ("3, 5", "", "", ""),
    ("(3, 5)", "", "", ""),
    ("1,5", "", "", ""),
    ("18cm", "", "", ""),
    ("2nd", "", "", ""),
    ("90^\\circ", "", "", ""),
    # What is read, text after the answer too.
    ("\\boxed{18}\nI checked it in 2 ways.", "18", "", "18"),
    ("\\boxed{7} so \\boxed{18}.", "18", "", "18"),
    ("$\\boxed{\\$1{}8}$", "", "", ""),
    ("$\\boxed{\\$18}$.", "18", "", "18"),
    ("\\[ \\boxed{ 18 } \\]", "18", "", "18"),
    ("\\boxed{18\\%} of 2", "18", "", "18"),
    ("\\boxed{18", "", "", ""),
    ("#### 18", "18", "18", ""),
    ("#### 7\n#### 18", "18", "18", ""),
    ("#### 18\nI checked it in 2 ways.", "2", "18", ""),
    ("#### 18 (2 ways)", "", "", ""),
    ("= 18 \\boxed{18}", "", "", ""),
    ("#### 18 eggs a day, 2 days", "2", "18", ""),
    ("#### **$1,018.0** so", "1018", "1018", ""),
    ("####\n\n18", "18", "18", ""),
    ("#### is 18", "18", "", ""),
    ("#### 18\n#### no", "18", "", ""),
    ("It is equal to 18 dollars.", "18", "", ""),
    ("<answer> 18 </answer>", "18", "", ""),
]


@pytest.mark.parametrize("name", READERS)
def test_cases_by_hand(name):
    graph, host, read = READERS[name]
    column = 1 + list(READERS).index(name)
    texts = [row[0] for row in TABLE]
    values = [row[column] for row in TABLE]
    for text, value in zip(texts, values, strict=True):
        assert read(text, True) == (slow.value(value) if value else None), text
    # Each text against its value and against all runs of digits of all texts.
    said = sorted({*filter(None, values), *(run for t in texts for run in _runs(t))})
    some = verify_fakes.saying([[slow.encoded(t) for t in texts]] * len(said))
    correct = verify_fakes.assert_twins_agree(
        graph, host, verify_fakes.asking(said), some
    )
    for answer, row in zip(said, correct, strict=True):
        same = [bool(v) and slow.value(v) == slow.value(answer) for v in values]
        wrong = [
            t for t, yes, want in zip(texts, row, same, strict=True) if yes != want
        ]
        assert not wrong, (answer, wrong)


def written(value: fractions.Fraction | None) -> str:
    """The value as an answer; without one, a number that must not be paid."""
    if value is None:
        return "?"
    digits = decimal.Context(prec=60).divide(value.numerator, value.denominator)
    return f"{digits:f}"


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=30)
@given(data=st.data())
def test_graph_twin_and_slow_reader_agree_on_every_text(name, data):
    graph, host, read = READERS[name]
    texts = [data.draw(slow.texts()) for _ in range(BATCH)]
    if name == "####":
        marks = ["#### ", "####", ""]
        texts = [data.draw(st.sampled_from(marks)) + text for text in texts]
    texts = [t for t in texts if len(slow.encoded(t)) < SIZE]
    texts += [""] * (BATCH - len(texts))
    finished = data.draw(st.lists(st.booleans(), min_size=BATCH, max_size=BATCH))
    values = [read(t, done) for t, done in zip(texts, finished, strict=True)]
    some = verify_fakes.saying([[slow.encoded(t)] for t in texts], num_tokens=SIZE)
    some = some.replace(finished=np.array(finished)[:, None])

    # Each against its own value, and against the digits that a careless reader takes.
    own = [written(value) for value in values]
    right = verify_fakes.assert_twins_agree(graph, host, asking(own), some)[:, 0]
    for text, value, done, yes in zip(texts, values, finished, right, strict=True):
        assert yes == (value is not None), (text, value, done)
    for piece in (0, -1):
        said = [_runs(text)[piece] for text in texts]
        right = verify_fakes.assert_twins_agree(graph, host, asking(said), some)[:, 0]
        for text, run, value, yes in zip(texts, said, values, right, strict=True):
            assert yes == (value is not None and value == slow.value(run)), (text, run)


def asking(answers):
    return verify_fakes.asking([answer.ljust(80) for answer in answers])


def _runs(text: str) -> list[str]:
    runs = "".join(c if c in slow.DIGITS else " " for c in text).split()
    return [run[:40] for run in runs] or ["7"]
