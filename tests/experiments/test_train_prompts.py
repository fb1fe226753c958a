"""Flags of prompts, stops and test data: what a run is made of, and what is refused."""

import json
import pathlib

import jax
import numpy as np
import pytest
from hugging_face_folders import TRAINABLE as CONFIG
from hugging_face_folders import small_params

from experiments import assemble, problems, train
from rljax.data import tokenizer
from rljax.model import hugging_face

WORDS = tokenizer.character_tokenizer("0123456789+=\nuse:")  # "0" is 2, "\n" is 14
TEMPLATE = (
    "{% for m in messages %}{{ m.role[:3] if m.role == 'user' else '=' }}:"
    "{{ m.content }}\n{% endfor %}{% if quick %}=={% endif %}"
)


@pytest.fixture
def model(tmp_path):
    """A folder with a chat template, and a stop string in generation_config.json."""
    folder = tmp_path / "model"
    hugging_face.save(folder, CONFIG, small_params(CONFIG), tokenizer=WORDS)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    generation = {"eos_token_id": [1], "stop_strings": ["\n="]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def write(file: pathlib.Path, rows):
    rows = [{"question": q, "answer": a} for q, a in rows]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def config(model, folder, **changes):
    sums = [(f"{i}+{i}", float(i)) for i in range(30)]
    options = {
        "model": model,
        "data": write(folder / "train.jsonl", sums),
        "max_prompt_tokens": 24,
        "max_tokens": 6,
        "num_validation": 4,
        "num_test": 3,
        "num_prompts": 4,
        "num_samples": 2,
    }
    return train.Config(**options | changes)


def build(*args, **changes):
    made = config(*args, **changes)
    train.check(made)
    return problems.build(made, None)


def texts(prompts):
    rows = zip(prompts.tokens, prompts.length, strict=True)
    return [WORDS.decode(tokens[:length]) for tokens, length in rows]


def test_prompts_are_written_by_the_chat_template(model, tmp_path):
    flags = {"chat": True, "system": "1", "template_args": ("quick=true",)}
    _, task = build(model, tmp_path, **flags, template="{question}=")
    got = [x for part in task[:3] for x in texts(part)]
    assert sorted(got) == sorted(f"=:1\nuse:{i}+{i}=\n==" for i in range(30))


def test_data_may_hold_messages_where_there_is_chat(model, tmp_path):
    said = [([{"role": "user", "content": f"{i}+1"}], i) for i in range(30)]
    file = write(tmp_path / "said.jsonl", said)
    _, task = build(model, tmp_path, data=file, chat=True)
    assert "use:3+1\n" in [x for part in task[:3] for x in texts(part)]
    with pytest.raises(ValueError, match=r"said\.jsonl: .* conversation; pass --chat"):
        build(model, tmp_path, data=file)


def test_the_test_is_of_its_own_file_and_none_of_it_is_trained_on(
    model, tmp_path, capsys
):
    own = [("3+3", 6), ("9+0", 9), ("9+1", 10), ("4+4", 8), ("4+4", 8)]
    test_data = write(tmp_path / "test.jsonl", own)
    _, task = build(model, tmp_path, test_data=test_data, num_test=100)
    # Split from one file, the test would have had no 9+0.
    assert sorted(texts(task.test)) == ["3+3", "4+4", "9+0", "9+1"]
    others = texts(task.train) + texts(task.validation)
    assert sorted(others) == sorted(f"{i}+{i}" for i in range(30) if i not in (3, 4))
    assert len(task.validation.id) == 4
    ids = np.concatenate([part.id for part in task[:3]])
    assert len(set(ids)) == len(ids)  # keys of random numbers
    assert len({part.data["answer"].shape[1] for part in task[:3]}) == 1
    out = capsys.readouterr().out
    assert "train.jsonl and " in out and "4 of 5 problems of the test data" in out
    assert "2 of them from the test data" in out
    _, fewer = build(model, tmp_path, test_data=test_data, num_test=2)
    assert len(fewer.test.id) == 2


def test_stop_strings_come_from_the_folder_and_from_flags(model, tmp_path, capsys):
    own, task = build(model, tmp_path, stop=("use:", "\n="))
    assert own.stop_strings == ("\n=", "use:")
    assert (
        r"ends with <end> (1) or the text '\n=' or the text 'use:'"
        in capsys.readouterr().out
    )
    # In the run's own sampler, and in the verifier's table.
    c = config(model, tmp_path)
    made = assemble.stops(own)
    assert made is not None and made.texts == (b"\n=", b"use:")
    sample = assemble.samples(c, own.policy(), own, False)
    params = own.init(jax.random.key(0))
    prompts = jax.tree.map(lambda x: x[:20], task.train)
    samples, _ = jax.jit(sample)(params, prompts, jax.random.key(1))
    length = np.sum(samples.mask, -1)
    for p, g in np.ndindex(*length.shape):
        said = WORDS.decode(samples.tokens[p, g][: length[p, g]])
        found = said.endswith(("\n=", "use:", "<end>"))
        assert bool(samples.finished[p, g]) == found
        assert "\n=" not in said[:-1] and "use:" not in said[:-1]


REFUSED = [
    ({"system": "1"}, r"--system must come with --chat, got '1' without it"),
    ({"template_args": ("a=1",)}, "--template-args must come with --chat"),
    ({"chat": True, "template_args": ("a",)}, "NAME=JSON, got 'a': there is no"),
    ({"chat": True, "template_args": ("a=False",)}, "NAME=JSON, got 'a=False': Exp"),
    ({"max_prompt_tokens": 2}, r"train\.jsonl: .* kept 0 of 30 .*--max-prompt-tokens"),
]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"question": "q"}, r"--question must come with --data, got 'q' without it"),
        ({"answer_after": "#"}, "--answer-after must come with --data"),
        ({"needle": "x"}, r"--needle must come with --verifier contains, got 'x'"),
        ({"verifier": "exact", "after": "#"}, "--verifier number or last-number"),
        ({"verifier": "exact", "timeout": 1.0}, "--timeout must .* --verifier python"),
        ({"verifier": "contains", "needle": ""}, "--needle must hold at least one"),
    ],
)
def test_a_flag_that_nothing_reads_is_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        train.check(train.Config(**changes))


@pytest.mark.parametrize(("changes", "told"), REFUSED)
def test_what_makes_no_prompt_is_refused_by_its_flag(model, tmp_path, changes, told):
    with pytest.raises(ValueError, match=told):
        build(model, tmp_path, **changes)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (None, r"train\.jsonl: the tokenizer must have a chat template"),
        ("use:", r"train\.jsonl: .*put the user's message into the prompt"),
        ("{{ raise_exception('no') }}", r"train\.jsonl: .*raises TemplateError: no"),
    ],
)
def test_a_folder_that_cannot_chat_is_refused(model, tmp_path, template, told):
    file = model / "chat_template.jinja"
    file.unlink() if template is None else file.write_text(template)
    with pytest.raises(ValueError, match=told):
        build(model, tmp_path, chat=True)


def test_a_problem_that_cannot_be_encoded_is_told_by_file_and_line(model, tmp_path):
    test_data = write(tmp_path / "test.jsonl", [("1", 1), ("2 ?", 2)])
    test_data.write_text("\n\n" + test_data.read_text())
    for options in ({}, {"chat": True}):
        with pytest.raises(ValueError, match=r"number 31 \(.*test\.jsonl:4\) .*2 \?"):
            build(model, tmp_path, test_data=test_data, **options)


def test_test_data_of_no_use_is_refused(model, tmp_path):
    long = write(tmp_path / "long.jsonl", [("1" * 40, 1)])
    with pytest.raises(ValueError, match=r"long\.jsonl: a problem of the test data"):
        build(model, tmp_path, test_data=long)
    with pytest.raises(ValueError, match="--test-data must come with --data"):
        train.check(train.Config(test_data=long))


def test_a_stop_string_that_no_token_spells_is_refused(model, tmp_path):
    for text, told in (("Q", "or gen.*'Q': no sequence"), ("", "must hold at least")):
        c = config(model, tmp_path, stop=("use", text))
        with pytest.raises(ValueError, match=f"--stop.*{told}"):
            train.build(c)
    (model / "generation_config.json").write_text('{"stop_strings": [7]}')
    with pytest.raises(ValueError, match=r"generation_config\.json: stop_strings must"):
        build(model, tmp_path)
