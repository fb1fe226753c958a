"""The law R = -a exp(H) + b: by hand, fitted, and of a run."""

import numpy as np
import pytest

from rljax.analysis import entropy_law

LAW = entropy_law.EntropyLaw(a=0.2, b=0.7, r_squared=1.0)


def test_the_law():
    np.testing.assert_allclose(LAW([0, 0.5, 1]), [0.5, 0.370256, 0.156344], atol=1e-6)
    assert LAW.ceiling == pytest.approx(0.5)


def test_the_fit_finds_the_law_again():
    h = np.array([0.05, 0.2, 0.6, 1.1])
    got = entropy_law.fit(h, LAW(h))
    assert got.a == pytest.approx(0.2) and got.b == pytest.approx(0.7)
    assert got.r_squared == pytest.approx(1)
    noisy = entropy_law.fit(h, LAW(h) + np.array([0.01, -0.01, -0.01, 0.01]))
    assert 0.9 < noisy.r_squared < 1


@pytest.mark.parametrize(
    ("h", "r", "message"),
    [
        ([1.0, 1.0], [0.1, 0.2], "two different"),
        ([1.0], [0.1, 0.2], "one shape"),
        ([1.0, np.nan], [0.1, 0.2], "finite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(h, r, message):
    with pytest.raises(ValueError, match=message):
        entropy_law.fit(np.array(h), np.array(r))


def test_points_and_picture_of_a_run(tmp_path):
    records = [
        {"kind": "step", "step": s, "seconds": s, "policy/entropy_nats": 1 - s / 10}
        for s in range(1, 10)
    ]
    records += [
        {"kind": "evaluation", "step": s, "seconds": s, "acc": float(LAW(1 - s / 10))}
        for s in (2, 5, 9)
    ]
    h, r = entropy_law.points(records, "acc")
    np.testing.assert_allclose(h, [0.8, 0.5, 0.1])
    law = entropy_law.fit(h, r)
    assert law.a == pytest.approx(0.2)
    entropy_law.plot(tmp_path / "law.png", law, h, r, name="accuracy")
    assert (tmp_path / "law.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="'other'"):
        entropy_law.points(records, "other")
