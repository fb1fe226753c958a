"""--plan: what is shown, what is refused, and that nothing runs."""

import re
import sys

import pytest
import tiny_program

from experiments import cli
from rljax import mesh
from rljax.plan import cost, peak, show

BIG = tiny_program.Config(num_prompts=64, max_tokens=16, num_samples=8)
RATES = cost.Rates(1e9, 1e9, 1e9)


def planned(config, sizes):
    assert sizes is None
    return tiny_program.program(config)


@pytest.fixture(autouse=True)
def quick_rates(monkeypatch):
    monkeypatch.setattr(show, "measure_rates", lambda sizes: RATES)


def needed(config):
    program = tiny_program.program(config)
    step = cost.memory(program, program.sizes(), program.compile())
    return peak.peak(program, step, on_host=True).wanted


def test_the_tables_show_what_the_plan_says(capsys):
    found = show.show_plan(tiny_program.program, BIG, free=2**40)
    out = " ".join(capsys.readouterr().out.split())
    assert "64 prompts of 3 x 8 samples x 16 tokens" in out
    assert f"{found.num_parameters:,} parameters" in out
    assert f"in all │ {found.memory.total / 2**20:,.1f}" in out
    assert "free, beside this process │ 1,048,576.0" in out
    assert f"{found.tokens_per_second:,.0f} sampled tokens/s" in out


@pytest.mark.slow
def test_what_does_not_fit_is_refused_and_each_advice_makes_it_fit():
    # A guess by proportion that nothing compiled would not fit to the byte.
    free = needed(BIG) * 2 // 3
    with pytest.raises(ValueError, match="it fits with one of") as error:
        show.show_plan(tiny_program.program, BIG, free=free)
    found = re.findall(r"--([a-z-]+) (\d+) instead of \d+: ([\d.]+)", str(error.value))
    assert {name for name, *_ in found} >= {"num-prompts", "num-samples", "max-tokens"}
    assert all(float(mib) <= free / 2**20 for *_, mib in found)
    name, value, mib = found[-1]
    changes = {name.replace("-", "_"): int(value)}
    smaller = needed(tiny_program.Config(**vars(BIG) | changes))
    assert f"{smaller / 2**20:,.1f}" == mib


def test_a_model_too_large_by_itself_is_refused_without_useless_advice():
    with pytest.raises(ValueError, match="smaller model") as error:
        show.show_plan(tiny_program.program, BIG, free=2**15)
    assert "instead of" not in str(error.value)


def test_the_flag_runs_nothing_and_leaves_no_file(tmp_path, monkeypatch, capsys):
    def main(config, run_dir, resume):
        raise AssertionError("--plan must not run anything")

    monkeypatch.chdir(tmp_path)
    flags = ["tiny", "--plan", "--no-compilation-cache", "--num-prompts", "16"]
    monkeypatch.setattr(sys, "argv", flags)
    cli.start("tiny", main, BIG, BIG, planned)
    assert "16 prompts of 3" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_flag_exits_with_an_error_where_it_does_not_fit(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tiny", "--plan", "--no-compilation-cache"])
    monkeypatch.setattr(show.machine, "free_memory", lambda device: 2**15)
    with pytest.raises(SystemExit, match=r"error: .* MiB, and 0\.0 are free"):
        cli.start("tiny", lambda *_: None, BIG, BIG, planned)
    assert "Memory" in capsys.readouterr().out  # the table comes first


def test_an_experiment_that_does_not_say_what_it_runs_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tiny", "--plan", "--no-compilation-cache"])
    with pytest.raises(SystemExit, match="program="):
        cli.start("tiny", lambda *_: None, BIG, BIG)


def test_a_plan_is_of_one_mesh(monkeypatch):
    flags = ["tiny", "--plan", "--no-compilation-cache", "--sampler-mesh", "data=2"]
    monkeypatch.setattr(sys, "argv", flags)
    with pytest.raises(SystemExit, match=r"without --sampler-mesh.*got data=2; leave"):
        cli.start("tiny", lambda *_: None, BIG, BIG, planned)


def test_the_flag_plans_for_the_mesh_that_is_asked_for(monkeypatch, capsys):
    def planned(config, sizes):
        program = tiny_program.program(config)
        return program._replace(place=mesh.make(**mesh.parse(sizes)))

    flags = ["tiny", "--plan", "--no-compilation-cache", "--mesh", "data=8"]
    monkeypatch.setattr(sys, "argv", flags)
    cli.start("tiny", lambda *_: None, BIG, BIG, planned)
    out = " ".join(capsys.readouterr().out.split())
    assert "16 tokens, each of 8 devices" in out
    assert "Memory of a training step, each of 8 devices" in out
