"""One's own model and problems: what is checked and said before the first step."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import types
import typing

import algorithm_cases
import jax
import numpy as np
import pytest
from hugging_face_folders import TRAINABLE as CONFIG
from hugging_face_folders import small_params

from experiments import assemble, problems, recipes, train
from rljax.data import tokenizer
from rljax.model import hugging_face
from rljax.run.tracker import Tracker
from rljax.types import Samples

ROOT = pathlib.Path(__file__).parents[2]
WORDS = tokenizer.character_tokenizer("0123456789+=")  # "0" is 2, "+" 12, "=" 13


@pytest.fixture
def model(tmp_path):
    """A folder whose generation_config.json names a second end token, "="."""
    folder = tmp_path / "model"
    extra = {"max_position_embeddings": 48, "note": "kept"}
    hugging_face.save(
        folder, CONFIG, small_params(CONFIG), tokenizer=WORDS, extra=extra
    )
    generation = {"eos_token_id": [1, 13], "top_p": 0.9}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def write(folder, questions):
    file = folder / "problems.jsonl"
    rows = [{"question": q, "answer": str(i % 7)} for i, q in enumerate(questions)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def build(model, file, **changes):
    options = {
        "max_prompt_tokens": 8,
        "max_tokens": 6,
        "num_validation": 2,
        "num_test": 3,
        "num_prompts": 4,
    }
    config = train.Config(model=model, data=file, **options | changes)
    train.check(config)
    return problems.build(config, None)


def test_without_files_the_defaults_find_sums_enough():
    # The first command that one tries: python -m experiments.train --algorithm fade
    c = train.Config()
    _, made = problems.build(c, None)
    assert len(made.train.id) >= c.num_prompts
    assert len(made.validation.id) == c.num_validation
    assert len(made.test.id) == c.num_test


DIFFERENT = [f"{i}+{i}" for i in range(30)]


def test_no_question_is_trained_on_and_tested(model, tmp_path, capsys):
    file = write(tmp_path, [f"{i % 10}+1" for i in range(60)])
    _, made = build(model, file)
    parts = [made.train, made.validation, made.test]
    seen = [{tuple(row) for row in part.tokens.tolist()} for part in parts]
    assert [len(questions) for questions in seen] == [5, 2, 3]
    assert len(set.union(*seen)) == 10
    assert [len(part.id) for part in parts] == [30, 2, 3]
    out = capsys.readouterr().out
    assert "50 repeat the question of an earlier one" in out
    assert "30 problems to train on, 2 and 3 held out" in out and "25 left out" in out


@pytest.mark.parametrize(
    ("held", "told"), [(8, "more different"), (6, "at least --num")]
)
def test_too_few_different_questions_are_refused(model, tmp_path, held, told):
    # 20 problems would do, of which but 10 differ.
    file = write(tmp_path, [f"{i % 10}+1" for i in range(20)])
    with pytest.raises(ValueError, match=rf"problems\.jsonl.*{told}.*lower"):
        build(model, file, num_validation=held, num_test=2, num_prompts=6)


def test_all_end_tokens_are_used_and_shown(model, tmp_path, capsys):
    own, made = build(model, write(tmp_path, DIFFERENT))
    assert own.stop_tokens == (1, 13)
    assert "a completion ends with <end> (1) or = (13)" in capsys.readouterr().out
    # The answer is "0", and the completion "0=": what ends it is no part of its text.
    samples = Samples(
        tokens=np.array([[[2, 13]]]),
        mask=np.ones((1, 1, 2), bool),
        source=np.zeros((1, 1), np.int32),
        finished=np.ones((1, 1), bool),
    )
    prompts = jax.tree.map(lambda x: x[made.train.id % 7 == 0][:1], made.train)
    assert jax.jit(made.verify)(prompts, samples).correct.tolist() == [[True]]


@pytest.mark.parametrize(
    ("file", "changes", "told"),
    [
        ("generation_config.json", {"eos_token_id": [1, 20]}, r"eos_token_id of .*20"),
        (
            "config.json",
            {"eos_token_id": "</s>"},
            r"(?s)config.json.*'</s>'",
        ),
        ("config.json", {"max_position_embeddings": "48"}, "config.json: max_position"),
        ("config.json", {"max_position_embeddings": 13}, "must be at most 13"),
        ("config.json", {"vocab_size": 12}, r"vocab_size=12 .* got 14.*'\+' \(12\)"),
    ],
)
def test_what_the_folder_says_wrong_is_refused(model, tmp_path, file, changes, told):
    entries = json.loads((model / file).read_text())
    (model / file).write_text(json.dumps(entries | changes))
    with pytest.raises(ValueError, match=told):
        build(model, write(tmp_path, DIFFERENT))


def test_a_tokenizer_with_one_token_too_many_is_refused(model, tmp_path):
    # All steps ran, then saving was refused, and so was every resume.
    words = tokenizer.load_tokenizer(model)
    words.add_tokens([f"<{i}>" for i in range(7)])
    words.save_pretrained(model)
    with pytest.raises(ValueError, match=r"vocab_size=20 tokens, got 21.*'<6>' \(20\)"):
        build(model, write(tmp_path, DIFFERENT))


@pytest.mark.slow
def test_what_the_folder_says_survives_a_run(model, tmp_path):
    flags = (
        f"--quick --model {model} --data {write(tmp_path, DIFFERENT)} --num-steps 4"
        " --max-prompt-tokens 8 --max-tokens 4 --num-prompts 8 --num-samples 2"
        f" --num-validation 4 --num-test 4 --run-dir {tmp_path / 'run'}"
    )
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", *flags.split()],
        cwd=ROOT,
        env=dict(os.environ, JAX_PLATFORMS="cpu", XDG_CACHE_HOME=str(tmp_path)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "ends with <end> (1) or = (13)" in done.stdout
    policy = tmp_path / "run" / "policy"
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (policy / name).read_bytes() == (model / name).read_bytes()
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (model, policy)
    )
    assert before == after


def tiny(name, **changes):
    """The default configuration of a recipe at tiny sizes, on one-digit sums."""
    make = train.with_numbers(name, train.Config)
    return make(algorithm=name, **train.QUICK | changes)


def test_a_model_without_data_is_refused_and_so_is_data_without_a_model():
    for changes in ({"model": pathlib.Path("x")}, {"data": pathlib.Path("x")}):
        with pytest.raises(ValueError, match="--model and --data must go together"):
            train.check(tiny("grpo", **changes))


def test_without_data_there_are_as_many_problems_as_a_step_needs():
    # `tpu.compile` of 128 chips once wanted more sums than there were.
    (made,) = train.build(tiny("grpo", num_prompts=128))
    assert made.program().sizes().num_prompts == 128


def test_a_missing_folder_is_named():
    config = tiny("grpo", model=pathlib.Path("nowhere"), data=pathlib.Path("x.jsonl"))
    with pytest.raises(ValueError, match="nowhere"):
        train.build(config)


def test_every_recipe_is_offered_or_says_where_it_is_made():
    # A recipe that the filter of numbers forgot would be missing without a word.
    cases = set(algorithm_cases.CASES) - {"dgg_gate", "ppo_clip_policy"}
    assert cases == set(recipes.RECIPES) | set(recipes.IN_PYTHON)
    for name in recipes.IN_PYTHON:
        with pytest.raises(ValueError, match="write an experiment with"):
            recipes.require(name)


def test_the_numbers_of_a_recipe_are_its_flags_with_its_own_text():
    numbers = recipes.numbers_of("fade")
    assert numbers().alpha_max == 3.0 and numbers().entropy_target is None
    hint = typing.get_type_hints(numbers, include_extras=True)["ema_rate"]
    assert "both running averages" in hint.__metadata__[0].help
    assert "A_S = q^alpha" in numbers.__doc__


def test_every_number_of_every_recipe_says_what_it_is_and_where_it_is_from():
    for name in recipes.RECIPES:
        numbers = recipes.numbers_of(name)
        assert "\nSource: " in numbers.__doc__, name
        hints = typing.get_type_hints(numbers, include_extras=True)
        for field in dataclasses.fields(numbers):
            assert hints[field.name].__metadata__[0].help, (name, field.name)


def test_help_shows_the_numbers_of_a_recipe_and_its_source(monkeypatch, capsys):
    # Behind the arguments of a docstring its source would not be shown.
    monkeypatch.setattr(sys, "argv", ["train", "--algorithm", "dapo", "--help"])
    with pytest.raises(SystemExit):
        train.main()
    told = capsys.readouterr().out
    for part in ("--algorithm.buffer", "slope, tokens", "arXiv:2503.14476"):
        assert part in told


def test_a_number_out_of_range_is_told_by_its_flag():
    numbers = recipes.numbers_of("grpo")(clip=-1.0)
    with pytest.raises(ValueError, match=r"--algorithm\.clip must"):
        recipes.make("grpo", numbers, {})


def asked(monkeypatch, *flags):
    """What the command line asks `experiment.run` for."""
    flags = ("train", "--quick", "--no-compilation-cache", *flags)
    monkeypatch.setattr(sys, "argv", list(flags))
    seen = []
    monkeypatch.setattr(
        train.cli.experiment, "run", lambda made, *_, **kwargs: seen.append(kwargs)
    )
    train.main()
    return seen[0]


def test_the_flags_of_a_recipe_reach_it(monkeypatch):
    flags = ("--algorithm", "norm_grpo", "--algorithm.order", "1.5")
    config = asked(monkeypatch, *flags)["config"]
    assert config["algorithm"] == "norm_grpo"
    assert config["numbers"]["order"] == 1.5 and config["num_steps"] == 4


def test_a_run_is_tracked_where_the_flag_says(monkeypatch):
    assert asked(monkeypatch)["writers"] == ()
    run = types.SimpleNamespace(finish=lambda: None)
    library = types.SimpleNamespace(init=lambda **options: run)
    monkeypatch.setitem(sys.modules, "trackio", library)
    (writer,) = asked(monkeypatch, "--track", "trackio")["writers"]
    assert isinstance(writer, Tracker)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit, match="--track wandb must have the package"):
        asked(monkeypatch, "--track", "wandb")


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("grpo", set()),
        ("grpo_kl", {"reference"}),
        ("ppo", {"value"}),
        ("asft", {"reference"}),
        ("psft", set()),
        ("gft", set()),
    ],
)
def test_a_recipe_gets_what_it_reads(name, reads):
    (made,) = train.build(tiny(name))
    program = made.program()
    assert made.reference == ("reference" in reads)
    assert ("value" in program.state.params) == ("value" in reads)
    # A group of gft has the stored answer as its fifth row; imitation has it alone.
    rows = {"gft": 5, "psft": 1, "asft": 1}.get(name, 4)
    assert program.sizes().num_samples == rows


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_can_be_had_by_its_name(name):
    # One that is missing from the lists of stored, mixed or greedy rows is refused, or
    # trains on rows that it does not know.
    own = recipes.numbers_of(name)
    needed = [f for f in dataclasses.fields(own) if f.default is dataclasses.MISSING]
    kinds = typing.get_type_hints(own)
    numbers = own(**{f.name: 2 if kinds[f.name] is int else 0.5 for f in needed})
    (made,) = train.build(dataclasses.replace(tiny(name), numbers=numbers))
    case = algorithm_cases.CASES[name]
    rows = len(case.others) if case.only else 4 + len(case.others)
    assert made.program().sizes().num_samples == rows


def test_a_teacher_is_the_policy_that_is_told_the_solution():
    model, task = problems.build(tiny("dasd"), None)
    row = task.train.data
    text = model.tokenizer.decode(row["privileged"][0][: row["privileged_length"][0]])
    question = model.tokenizer.decode(task.train.tokens[0][: task.train.length[0]])
    answer = bytes(row["answer"][0]).rstrip(b"\0").decode()
    assert text == f"{question}\n{answer}"
    (made,) = train.build(tiny("dasd"))
    assert made.program().sizes().num_samples == 4


def test_what_the_command_line_cannot_supply_is_told(monkeypatch):
    monkeypatch.setattr(assemble, "_SUPPLIED", set())
    with pytest.raises(ValueError, match=r"--algorithm grpo_kl must .*reference"):
        train.build(tiny("grpo_kl"))


def test_an_imitating_recipe_without_worked_solutions_is_refused(model, tmp_path):
    file = write(tmp_path, DIFFERENT)
    sizes = {"num_validation": 2, "num_test": 3, "num_prompts": 4}
    with pytest.raises(ValueError, match=r"--algorithm sft must .*--demonstration"):
        train.build(tiny("sft", model=model, data=file, **sizes))


def test_dynamic_sampling_draws_more_prompts_than_it_trains_on():
    (made,) = train.build(tiny("grpo", draw_prompts=16))
    assert made.program().prompts.length.shape == (1, 16)
    with pytest.raises(ValueError, match="--draw-prompts must be at least"):
        train.check(tiny("grpo", draw_prompts=4))


def test_evaluations_of_a_model_are_in_slots_where_there_are_many_rows():
    folder = pathlib.Path("x")
    default = train.Config(model=folder, data=folder)
    assert assemble.evaluation_slots(default, 512) == 256
    assert assemble.evaluation_slots(default, 254) is None
    assert assemble.evaluation_slots(train.Config(), 512) is None
    chosen = dataclasses.replace(default, num_slots=7)
    assert assemble.evaluation_slots(chosen, 512) == 7


def test_gates_are_chosen_by_their_numbers():
    assert assemble.gates(tiny("grpo")) is None
    both = assemble.gates(tiny("grpo", target_kl=0.1, gradient_gate=0.5))
    assert len(both.init()) == 2


def test_a_reward_that_cannot_be_found_is_told():
    for name in ("experiments.reward", "experiments.reward:nothing", "nowhere:fn"):
        with pytest.raises(ValueError, match="--reward must be module:function"):
            problems.imported(name)
    assert problems.imported("experiments.reward:exact")(" 3", "3") == 1.0
