"""What the benchmarks say of their measurements; none of the measurements is a test."""

import numpy as np
import pytest

from benchmarks import endurance, gpu_check, growth, real_model, results, workload


def test_growth_is_told_from_noise_and_outliers():
    # A least-squares line through the outlier at the end would rise by 4 %.
    steps = np.arange(100) * 20
    noise = np.random.default_rng(0).normal(0, 0.05, 100)
    still, outlier = 100 + noise, 100 + noise
    outlier[-1] = 300
    for values in (still, outlier):
        *_, said = endurance.verdict("host memory", "MiB", steps, values)
        assert said == "no growth"
    _, middle, change, said = endurance.verdict(
        "host memory", "MiB", steps, still + 0.002 * steps
    )
    assert said == "grows by more than 1 %"
    assert middle == "102.2 MiB"  # the middle of the last 90 points is at 1,090
    assert change.startswith("+3.5")  # 0.002 x 1,780


def test_idle_is_the_time_between_the_end_of_a_dispatch_and_the_next_request():
    # Asked for while the first still ran, then 3 after the second was done: 3 of 20.
    watch = endurance.Watch(run=None)
    watch.asked, watch.done = [0.0, 2.0, 23.0], [10.0, 20.0, 30.0]
    assert watch.idle_share() == pytest.approx(3 / 20)
    watch.close()


def test_exponents_are_those_of_the_ends_of_an_axis():
    cases = [
        {"axis": "G", "size": g, "ms": g**2, "gflop": g, "mib": 5.0, "parts_mib": g}
        for g in (2, 4, 8)
    ]
    assert "| G | 2 to 8 | 2.00 | 1.00 | 0.00 | 1.00 |" in growth.exponents(cases)


def test_an_axis_multiplies_its_sizes_and_no_others():
    work = growth.grown(workload.WORKLOADS["small"], growth.AXES["width"], 2)
    assert (work.d_model, work.num_heads, work.d_ff) == (128, 8, 256)
    assert work.num_layers == 1


def test_tables_show_four_digits():
    assert results.table(["a", "b"], [(1, 2.34567)]) == (
        "| a | b |\n| --- | --- |\n| 1 | 2.346 |"
    )


def test_a_command_names_no_folder_of_the_machine():
    # As typed it would say where a model lies here, and lose the quotes.
    inside = "experiments/data/story_openings.jsonl"
    typed = ["-m", "benchmarks.x", "--model", "/home/me/models/smollm2"]
    typed += ["--other=../models/tiny/", "--texts", inside, "--kinds", "as used"]
    assert results.command(typed) == (
        f"python -m benchmarks.x --model smollm2 --other=tiny --texts {inside}"
        " --kinds 'as used'"
    )


def test_steps_of_two_trainers_are_compared_round_by_round():
    def taken(*seconds):
        same = {"tokens": 40, "peak_mb": 900, "ready_s": 3.0, "reward": 0.5}
        same |= {"finished": 1.0, "entropy": 0.25}
        return [same | {"seconds": s} for s in seconds]

    # The first step compiles: with it the medians would be 6 and 2, the ratio 2 too.
    told = real_model.section({"trl": taken(10, 4, 6), "rljax": taken(9, 2, 2)})
    assert "| trl | 5.00 (4.00, 6.00) | 40 | 900 | 13 |" in told
    assert "| rljax | 2.00 (2.00, 2.00) | 40 | 900 | 12 |" in told
    assert "median 2.50, 2.00 to 3.00" in told
    assert "| 3 | 0.500 | 0.500 | 1.000 | 1.000 | 0.250 | 0.250 |" in told


def test_schedules_are_compared_by_the_sum_of_their_rates():
    # Up in 2 of 4 steps: (0 + .5 + 1 + .5) against TRL's 1 + .75 + .5 + .25.
    told = real_model.schedules([0.0, 5e-6, 1e-5, 5e-6])
    assert "first 4 of 4 steps add up to 2.00 peaks" in told and "to 2.50." in told


def test_a_stage_that_fails_or_hangs_is_told_and_ends(capsys):
    bad = gpu_check.Stage("bad", ["benchmarks.nothing"], 60)
    assert gpu_check.run(bad, 60) == "== bad ended with 1"
    endless = gpu_check.Stage("endless", ["http.server", "0"], 1)
    assert gpu_check.run(endless, 1) == "== endless did not end within 1 s"
    assert gpu_check.run(endless._replace(keeps=True), 1) is None
    assert "No module named benchmarks.nothing" in capsys.readouterr().out
