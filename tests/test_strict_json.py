"""JSON of others: what is ambiguous or no text is an error with its file and line."""

import json

import hypothesis
import pytest
from hypothesis import strategies as st

from rljax import data, strict_json
from rljax.data import tokenizer

GOOD = b'{"question": "1+1", "answer": "2"}'


def write(folder, *lines: bytes):
    path = folder / "problems.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.mark.parametrize(
    ("line", "told"),
    [
        # json.loads takes the first six without a word.
        (
            rb'{"question": "a\ud83d", "answer": "2"}',
            r"'question' .*character 1 is half",
        ),
        (
            rb'{"question": "a", "answer": "\udc00"}',
            r"'answer' .*surrogate pair, '\\ud",
        ),
        (rb'{"question": "a\u0000", "answer": "2"}', r"'question' .*is a zero byte"),
        (
            b'{"question": "a", "answer": "2", "answer": "3"}',
            r"key 'answer' occurs tw",
        ),
        (b'{"question": "a", "answer": "2", "x": NaN}', "NaN is no number of JSON"),
        (b'{"question": "a", "answer": "2", "x": -Infinity}', "-Infinity is no number"),
        (
            b'{"question": "a", "answer": "2", "x": {"y": 1, "y": 2}}',
            "key 'y' occurs",
        ),
        (b'{"question": "a\0", "answer": "2"}', "Invalid control character"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\0" * 64, "Expecting value"),
        (GOOD.decode().encode("utf-16"), "'utf-8' codec can't decode byte 0xff"),
        (GOOD + GOOD, "Extra data"),
    ],
)
def test_lines_that_json_lets_through_are_named(tmp_path, line, told):
    path = write(tmp_path, GOOD, line)
    with pytest.raises(ValueError, match=rf"problems\.jsonl:2\b.*{told}"):
        data.read_jsonl(path)


def test_demonstrations_are_checked_too(tmp_path):
    path = write(tmp_path, rb'{"question": "a", "answer": "2", "steps": "\ud800"}')
    with pytest.raises(ValueError, match=r"jsonl:1: field 'steps' must be text"):
        data.read_jsonl(path, demonstration="steps")


def test_whole_surrogate_pairs_and_byte_order_marks_are_no_obstacle(tmp_path):
    # Files that were joined have marks in their middle as well.
    emoji = rb'{"question": "\ud83d\ude00", "answer": "2"}'
    path = write(tmp_path, b"\xef\xbb\xbf" + GOOD, b"\xef\xbb\xbf" + emoji + b"\r")
    got = data.read_jsonl(path)
    assert got == [data.Problem("1+1", "2"), data.Problem("😀", "2")]


def test_numbers_are_read_or_kept_as_they_are_written():
    text = b"[0.10, 27.0, 1E3, -0, %s]" % (b"1" * 5000)
    # As floats the first would be 0.1, and the last is one of thousands of digits.
    got = strict_json.loads(text, written=True)
    assert got == ["0.10", "27.0", "1E3", "-0", "1" * 5000]
    assert {type(x) for x in got} == {strict_json.Written}
    assert strict_json.loads(b'[0.10, 7, "7"]') == [0.1, 7, "7"]
    with pytest.raises(ValueError, match="4300 digits"):
        strict_json.loads(text)


@hypothesis.given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused_and_never_a_traceback(text):
    try:
        strict_json.loads(text)
    except ValueError as error:
        assert str(error)


@hypothesis.given(st.text(alphabet=st.characters(exclude_categories=()), max_size=20))
def test_a_problem_is_encoded_or_its_number_is_named(text):
    # Half a surrogate pair is a TypeError inside the tokenizer, without any number.
    letters = tokenizer.character_tokenizer("abc")
    problems = [data.Problem("a", "1"), data.Problem(text or "a", "1")]
    try:
        data.encode_prompts(problems, letters, 30)
    except ValueError as error:
        assert "number 1" in str(error)


@pytest.mark.parametrize("field", ["question", "answer", "demonstration"])
def test_problems_made_by_hand_are_checked_as_well(field):
    letters = tokenizer.character_tokenizer("abc")
    problem = data.Problem("a", "b", "c")._replace(**{field: "a\ud800"})
    with pytest.raises(ValueError, match=rf"in the {field} of number 1 character 1 is"):
        data.encode_prompts([data.Problem("a", "b", "c"), problem], letters, 9)
    if field == "answer":
        with pytest.raises(ValueError, match="an answer must be text"):
            data.answer_bytes(["a\ud800"])


def test_a_template_that_is_no_text_is_refused():
    # What a shell passes in another encoding than UTF-8.
    letters = tokenizer.character_tokenizer("abc")
    with pytest.raises(ValueError, match=r"template must be text, but character 10"):
        data.encode_prompts(
            [data.Problem("a", "b")], letters, 9, template="{question}\udcff"
        )


@pytest.mark.parametrize("content", ["[]", "null", "3", '"text"'])
def test_a_file_that_holds_no_object_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    kind = type(json.loads(content)).__name__
    with pytest.raises(
        ValueError, match=rf"config\.json: must hold an object, got a {kind}"
    ):
        strict_json.read_file(tmp_path / "config.json")
