"""The policies of a run folder: whole after every kill, the best one the first best."""

import json
import os

import jax
import jax.numpy as jnp
import pytest

from rljax.evaluate import kept
from rljax.evaluate.kept import BEST, LAST
from rljax.policy.lora import Lora
from rljax.types import TrainState


def saves(text):
    def save(path):
        path.mkdir()
        (path / "weights").write_text(text)

    return save


def text(run_dir, name):
    return (run_dir / name / "weights").read_text()


def test_a_policy_takes_the_place_of_another_and_of_its_own_step_not(tmp_path):
    kept.put(tmp_path, LAST, saves("one"), {"step": 1})
    kept.put(tmp_path, LAST, saves("again"), {"step": 1})
    assert text(tmp_path, LAST) == "one"
    kept.put(tmp_path, LAST, saves("two"), {"step": 2})
    assert text(tmp_path, LAST) == "two"
    assert kept.facts_of(tmp_path, LAST) == {"step": 2}
    assert os.listdir(tmp_path) == [LAST]


def test_a_save_that_fails_leaves_the_old_one_and_no_part(tmp_path):
    kept.put(tmp_path, LAST, saves("one"), {"step": 1})

    def full(path):
        path.mkdir()
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        kept.put(tmp_path, LAST, full, {"step": 2})
    assert text(tmp_path, LAST) == "one"
    assert os.listdir(tmp_path) == [LAST]


@pytest.mark.parametrize(
    ("there", "want"),
    [
        ([".policy.new", "policy"], "policy"),  # killed while it was written
        ([".policy.new", ".policy.old"], ".policy.old"),  # between the two renames
        ([".policy.old", "policy"], "policy"),  # before the old one was removed
        ([".policy.new"], None),
    ],
)
def test_after_a_kill_at_any_point_one_whole_policy_is_there(tmp_path, there, want):
    for name in there:
        saves(name)(tmp_path / name)
    kept.settled(tmp_path, LAST)
    assert os.listdir(tmp_path) == ([LAST] if want else [])
    assert want is None or text(tmp_path, LAST) == want


def test_the_best_is_the_first_of_equals_over_a_resume(tmp_path, capsys):
    rates = [0.25, 0.5, 0.5, 0.25, 0.75]
    for step, rate in enumerate(rates):
        best = kept.Best(tmp_path)  # a resume before each
        best.offer({"pass@1": rate}, saves(str(step)), {"step": step})
        want = max(range(step + 1), key=lambda i: rates[i])
        assert text(tmp_path, BEST) == str(want)
        assert kept.facts_of(tmp_path, BEST) == {"step": want, "pass@1": rates[want]}

    def full(path):
        raise OSError("no space left")

    best = kept.Best(tmp_path)
    for _ in range(2):
        best.offer({"pass@1": 1.0}, full, {"step": 9})
    assert capsys.readouterr().out.count("no space left") == 1
    assert text(tmp_path, BEST) == "4"


class Describes:
    def describe(self, path):
        (path / "config.json").write_text("{}")


@pytest.mark.parametrize(
    ("export", "want"),
    [
        (lambda s: s.params["policy"], {"['w']": ".params['policy']['w']"}),
        (
            lambda s: {"w": s.params["policy"]["w"], "still": s.frozen},
            {"['w']": ".params['policy']['w']", "['still']": ".frozen"},
        ),
        (lambda s: {"w": s.params["policy"]["w"] + s.params["value"]}, None),
        (lambda s: {"w": jnp.sum(s.params["policy"]["w"])}, None),
    ],
)
def test_the_origin_says_which_leaf_of_the_state_each_of_the_policy_is(
    tmp_path, export, want
):
    # Names that add up to a text would be read as a leaf that no checkpoint has.
    leaf = jax.ShapeDtypeStruct((2,), jnp.float32)
    state = TrainState(
        params={"policy": {"w": leaf}, "value": leaf},
        frozen=leaf,
        optimizer=(),
        algorithm=(),
        gate=(),
        key=leaf,
        step=leaf,
    )
    kept.keep_origin(tmp_path, Describes(), state, export)
    found = json.loads((tmp_path / "model" / "checkpoint.json").read_text())
    assert found == {"params": want}
    kept.keep_origin(tmp_path, None, state, export)  # is there already


def test_the_origin_says_which_adapters_are_to_be_merged(tmp_path):
    leaf = jax.ShapeDtypeStruct((2,), jnp.float32)
    spec = Lora(rank=2, alpha=8.0, targets=("q",))
    state = TrainState(
        **{"params": {"w": leaf}, "optimizer": (), "algorithm": (), "gate": ()},
        **{"key": leaf, "step": leaf},
    )
    kept.keep_origin(tmp_path, Describes(), state, lambda s: s.params, spec)
    found = json.loads((tmp_path / "model" / "checkpoint.json").read_text())
    assert Lora(**found["lora"]).scale == 4.0 and found["lora"]["targets"] == ["q"]
