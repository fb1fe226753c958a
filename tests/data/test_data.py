"""Problems from files, encoding that never cuts, and streams that resume exactly."""

import json
import pathlib

import chex
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from tokenizers import processors

from rljax import data
from rljax.data import tokenizer
from rljax.types import Prompts

SHARED = pathlib.Path(__file__).parents[2].parent / "shared"


# read_jsonl


def write(folder, *lines: bytes):
    path = folder / "problems.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


GOOD = b'{"question": "1+1", "answer": "2"}'


def test_read_jsonl_reads_fields_and_skips_blank_lines(tmp_path):
    path = write(
        tmp_path, GOOD, b"", b"  ", '{"question": "é", "answer": "ü"}'.encode()
    )
    want = [data.Problem("1+1", "2"), data.Problem("é", "ü")]
    assert data.read_jsonl(path) == want


def test_read_jsonl_takes_the_answer_after_the_last_marker(tmp_path):
    solution = "2 #### no\\n#### 18 "
    path = write(tmp_path, f'{{"q": "how many?", "a": "{solution}"}}'.encode())
    (got,) = data.read_jsonl(path, "q", "a", demonstration="a", answer_after="####")
    # Splitting at the first marker would give "no\n#### 18".
    assert got == data.Problem("how many?", "18", "2 #### no\n#### 18 ")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"question": "1', r"must be a JSON object, but Unterminated string"),
        (b'{"question": "\xff\xfe", "answer": "2"}', r"but 'utf-8' codec"),
        (b'["1+1", "2"]', r"must be a JSON object, got list"),
        (b'{"question": "1", "solution": "2"}', r"'answer', got .*'solution'\]"),
        (b'{"answer": "2"}', r"a field 'question', got \['answer'\]"),
        (b'{"question": 27.0, "answer": "1"}', r"'question' must .* 27.0 \(number\)"),
        (b'{"question": "1", "answer": true}', r"'answer' must be .* True \(bool\)"),
        (b'{"question": null, "answer": "1"}', r"'question' must be .* None"),
        (b'{"question": "1", "answer": " "}', r"'answer' must be .* ' ' \(str\)"),
    ],
)
def test_read_jsonl_names_file_line_and_what_is_wrong(tmp_path, line, told):
    path = write(tmp_path, GOOD, b"", line)  # blank lines count as lines
    with pytest.raises(ValueError, match=rf"problems\.jsonl:3\b.*{told}"):
        data.read_jsonl(path)


@pytest.mark.parametrize("text", ["no marker", "#### ", "####"])
def test_read_jsonl_says_when_no_answer_follows_the_marker(tmp_path, text):
    path = write(tmp_path, json.dumps({"question": "1", "answer": text}).encode())
    with pytest.raises(ValueError, match=r"jsonl:1: .* marker '####', got .*that ends"):
        data.read_jsonl(path, answer_after="####")


def test_read_jsonl_refuses_an_empty_file(tmp_path):
    with pytest.raises(ValueError, match=r"problems\.jsonl must hold at least one"):
        data.read_jsonl(write(tmp_path, b""))


# encode_prompts

LETTERS = tokenizer.character_tokenizer("abcdefgh{}: ")  # "a" is 2, ":" is 12


def test_encode_prompts_by_hand():
    problems = [data.Problem("ab", "10", "c"), data.Problem("a", "é", "de")]
    got, report = data.encode_prompts(
        problems, LETTERS, 4, template="{}{question}", max_completion_tokens=4
    )
    want = Prompts(
        tokens=np.array([[10, 11, 2, 3], [10, 11, 2, 0]], np.int32),
        length=np.array([4, 3], np.int32),
        id=np.array([0, 1], np.int32),
        data={
            "answer": np.array([[49, 48], [0xC3, 0xA9]], np.uint8),
            # The end token (1) is part of what is learned.
            "completion": np.array([[4, 1, 0, 0], [5, 6, 1, 0]], np.int32),
            "completion_mask": np.array([[1, 1, 0, 0], [1, 1, 1, 0]], bool),
        },
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
    chex.assert_trees_all_equal(got, want)
    assert report == data.EncodingReport(2, 2, 0, 0, 4, 3)


def test_too_long_problems_are_dropped_counted_and_never_cut():
    questions = ["abc", "abcd", "a", "abcde", "ab"]
    worked = ["a", "a", "abc", "abcdef", "ab"]
    problems = [data.Problem(q, q, w) for q, w in zip(questions, worked, strict=True)]
    got, report = data.encode_prompts(problems, LETTERS, 3, max_completion_tokens=3)
    # Cut prompts would leave five rows. Ids are places in `problems`, not row numbers.
    assert got.id.tolist() == [0, 4]
    assert got.length.tolist() == [3, 2]
    assert [bytes(row) for row in got.data["answer"]] == [b"abc", b"ab\0"]
    # The problem that is too long twice is counted once.
    assert report == data.EncodingReport(5, 2, 2, 1, 5, 7)
    assert str(report) == (
        "kept 2 of 5 problems; dropped 2 for their prompt (longest 5 tokens) and 1 for"
        " their demonstration (longest 7 tokens)"
    )


def test_a_demonstration_needs_room_for_its_end_token():
    problems = [data.Problem("a", "b", "abc"), data.Problem("a", "b", "ab")]
    got, _ = data.encode_prompts(problems, LETTERS, 3, max_completion_tokens=3)
    assert got.id.tolist() == [1]


def test_the_begin_token_follows_the_tokenizers_convention_and_no_end_is_added():
    wraps = tokenizer.character_tokenizer("abc")
    wraps.add_special_tokens({"bos_token": "<begin>"})
    begin = wraps.bos_token_id
    one = [data.Problem("ab", "c")]
    plain, _ = data.encode_prompts(one, wraps, 4)
    assert plain.tokens.tolist() == [[2, 3, 0, 0]]  # it has one but does not use it
    wraps.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<begin> $A <end>", special_tokens=[("<begin>", begin), ("<end>", 1)]
    )
    # add_special_tokens=True would close the question with the end token.
    begun, _ = data.encode_prompts(one, wraps, 4)
    assert begun.tokens.tolist() == [[begin, 2, 3, 0]]
    given, _ = data.encode_prompts(one, wraps, 4, template="<begin>{question}")
    assert given.tokens.tolist() == [[begin, 2, 3, 0]]  # and never twice


@pytest.mark.parametrize(
    ("problem", "options", "told"),
    [
        (data.Problem("a", "b"), {"template": "{q}"}, r"\{question\}, got '\{q\}'"),
        (data.Problem("a", "b"), {"max_completion_tokens": 3}, "number 0 has none"),
        (data.Problem("", "b"), {}, "must have a prompt, but number 0"),
        (data.Problem("a", ""), {}, "must have a reference answer, but number 0"),
        (data.Problem("a", "b\0c"), {}, "zero byte"),
        (data.Problem("abcd", "b"), {}, "kept 0 of 1 .*raise max_prompt_tokens"),
    ],
)
def test_encode_prompts_says_what_to_do(problem, options, told):
    with pytest.raises(ValueError, match=told):
        data.encode_prompts([problem], LETTERS, 3, **options)


def test_no_problems_at_all_is_an_error():
    with pytest.raises(ValueError, match="kept 0 of 0"):
        data.encode_prompts([], LETTERS, 3)


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_gsm8k_with_a_real_tokenizer():
    problems = data.read_jsonl(
        SHARED / "data" / "gsm8k_test.jsonl",
        demonstration="answer",
        answer_after="####",
    )
    assert len(problems) == 1319
    assert [p.answer for p in problems[:4]] == ["18", "3", "70000", "540"]
    stories = tokenizer.load_tokenizer(SHARED / "models" / "stories260k")
    got, report = data.encode_prompts(
        problems, stories, 128, template="Q: {question}\nA:", max_completion_tokens=128
    )
    assert report.num_kept == len(got.id) < 1319
    assert (
        report.num_kept + report.num_long_prompts + report.num_long_completions == 1319
    )
    assert np.all(got.tokens[:, 0] == stories.bos_token_id)
    for row in (0, len(got.id) - 1):
        problem = problems[got.id[row]]
        prompt = stories.decode(got.tokens[row, 1 : got.length[row]])
        assert prompt == f"Q: {problem.question}\nA:"
        mask = got.data["completion_mask"][row]
        worked = got.data["completion"][row][mask]
        assert worked[-1] == stories.eos_token_id
        assert stories.decode(worked[:-1]) == problem.demonstration
        assert bytes(got.data["answer"][row]).rstrip(b"\0") == problem.answer.encode()


# stream


def rows(size: int) -> Prompts:
    """`size` prompts whose every array tells the row, for finding mixed-up ones."""
    ids = np.arange(size, dtype=np.int32)
    return Prompts(
        tokens=np.stack([ids, ids + 100], axis=1),
        length=np.full(size, 2, np.int32),
        id=ids,
        data={"answer": ids[:, None].astype(np.uint8)},
    )


def with_noise(prompts: Prompts, rng: np.random.Generator) -> Prompts:
    noise = rng.random(prompts.id.shape)
    return prompts.replace(data={**prompts.data, "noise": noise})


def take(iterator, count: int) -> list[Prompts]:
    return [next(iterator) for _ in range(count)]


def test_stream_gives_whole_rows_with_a_leading_axis_of_steps():
    (got,) = take(data.stream(rows(12), num_prompts=4, steps_per_dispatch=5, seed=0), 1)
    assert (got.tokens.shape, got.length.shape) == ((5, 4, 2), (5, 4))
    assert got.data["answer"].shape == (5, 4, 1)
    assert got.tokens.dtype == got.id.dtype == np.int32
    assert type(got.tokens) is np.ndarray
    np.testing.assert_array_equal(got.tokens[..., 0], got.id)
    np.testing.assert_array_equal(got.tokens[..., 1], got.id + 100)
    np.testing.assert_array_equal(got.data["answer"][..., 0], got.id)


def test_an_epoch_visits_every_prompt_once_and_the_next_one_is_shuffled_anew():
    steps = take(data.stream(rows(60), num_prompts=20, seed=3), 9)
    epochs = np.stack([s.id[0] for s in steps]).reshape(3, 60)
    np.testing.assert_array_equal(np.sort(epochs), [np.arange(60)] * 3)
    # One permutation for all epochs, or none, would be found here.
    orders = {tuple(e) for e in epochs} | {tuple(range(60))}
    assert len(orders) == 4


def test_what_does_not_fill_a_step_sits_out_a_different_rest_each_epoch():
    steps = take(data.stream(rows(11), num_prompts=4, seed=0), 40)
    epochs = np.stack([s.id[0] for s in steps]).reshape(20, 8)
    # Steps across the border of two epochs could hold a prompt twice.
    assert all(len(set(e)) == 8 for e in epochs)
    assert set(epochs.ravel()) == set(range(11))


def test_streams_are_the_same_by_seed_and_different_between_seeds():
    first, again, other = (
        np.stack([s.id for s in take(data.stream(rows(50), num_prompts=50, seed=s), 4)])
        for s in (7, 7, 8)
    )
    np.testing.assert_array_equal(first, again)
    # Epochs seeded with seed + epoch (grain's own shuffle) would repeat seed 7's
    # second epoch as seed 8's first.
    orders = {tuple(epoch.ravel()) for epoch in np.concatenate([first, other])}
    assert len(orders) == 8


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(st.data())
def test_a_restored_stream_continues_exactly_also_with_another_dispatch_size(draw):
    size = draw.draw(st.integers(1, 20), "rows")
    num_prompts = draw.draw(st.integers(1, size), "num_prompts")
    before = draw.draw(st.integers(1, 4), "steps per dispatch before")
    after = draw.draw(st.integers(1, 4), "steps per dispatch after")
    done = draw.draw(st.integers(0, 8), "dispatches done when killed")
    lost = draw.draw(st.integers(0, 3), "dispatches read after the checkpoint")

    def make(steps_per_dispatch):
        return data.stream(
            rows(size),
            num_prompts=num_prompts,
            steps_per_dispatch=steps_per_dispatch,
            seed=1,
            map_fn=with_noise,
        )

    killed = make(before)
    take(killed, done)
    state = json.dumps(killed.get_state())
    take(killed, lost)
    resumed = make(after)
    take(resumed, lost)  # restoring must also undo what was already read
    resumed.set_state(json.loads(state))
    got = take(resumed, 3)

    # Step for step what one uninterrupted run sees, its fresh noise included.
    steps = take(make(1), before * done + after * 3)[before * done :]
    for i, item in enumerate(got):
        for k in range(after):
            want = steps[i * after + k]
            chex.assert_trees_all_equal(
                {"id": item.id[k], **{n: v[k] for n, v in item.data.items()}},
                {"id": want.id[0], **{n: v[0] for n, v in want.data.items()}},
            )


def test_map_fn_draws_anew_at_every_step():
    stream = data.stream(rows(2), num_prompts=2, seed=0, map_fn=with_noise)
    noise = np.concatenate([s.data["noise"].ravel() for s in take(stream, 10)])
    # A generator keyed by prompt, or by epoch, would repeat itself.
    assert len(set(noise)) == 20


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_prompts": 11}, r"num_prompts must be in \[1, 10\].* got 11"),
        ({"num_prompts": 0}, r"num_prompts must be in \[1, 10\].* got 0"),
        ({"num_prompts": 2, "steps_per_dispatch": 0}, "steps_per_dispatch .* got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_anything_runs(options, told):
    with pytest.raises(ValueError, match=told):
        data.stream(rows(10), seed=0, **options)


def test_arrays_of_different_size_are_refused():
    mixed = rows(10).replace(id=np.arange(9))
    with pytest.raises(ValueError, match="same number of rows"):
        data.stream(mixed, num_prompts=2, seed=0)
