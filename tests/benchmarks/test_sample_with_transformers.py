"""A saved policy answers as often in transformers as in rljax."""

import os
import pathlib

import numpy as np
import pytest

from benchmarks import sample_with_transformers
from rljax.model import language_model
from rljax.task import arithmetic


@pytest.mark.slow
def test_a_saved_policy_is_right_as_often_when_transformers_samples_it(tmp_path):
    if "RLJAX_SMOLLM2" not in os.environ:
        pytest.skip("RLJAX_SMOLLM2 names no folder of the model")
    model = language_model.load(pathlib.Path(os.environ["RLJAX_SMOLLM2"]))
    folder = tmp_path / "policy"
    model.save(folder, model.init(None))
    # One-digit sums, which the untrained model answers one time in six. Samples of
    # another distribution (a temperature of 0.5, top-k of 50 by default) would answer
    # twice as often.
    every = arithmetic.splits().test
    rows = [i for i, question in enumerate(every) if question.kind == "sums, one digit"]
    questions = [every[i] for i in rows]
    ours = sample_with_transformers.by_rljax(folder, rows, 8)
    theirs = sample_with_transformers.by_transformers(folder, questions, 8)
    assert 0.02 < np.mean(ours) < 0.5
    stages = {"rljax": ours, "transformers": theirs}
    assert abs(sample_with_transformers.distance(stages)) < 3


def test_the_distance_is_in_standard_errors_of_the_paired_difference():
    # Differences 1/2, 0, 1/2, 0: their mean is 1/4, its error sqrt(1/12) / 2 = 0.144.
    first = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], bool)
    second = np.array([[1, 0], [1, 0], [1, 1], [1, 1]], bool)
    found = sample_with_transformers.distance({"a": first, "b": second})
    assert found == pytest.approx(0.25 / (np.sqrt(1 / 12) / 2))
    assert sample_with_transformers.distance({"a": first, "b": first}) == 0
