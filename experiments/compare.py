"""Compares algorithms on column addition, with learning rates tuned for each.

All seeds and learning rates of an algorithm train as one vmapped program. All
algorithms have the same warm starts and the same prompts. Writes table.md,
results.json, curves.png and schedule.png to the run folder.

Result: see LOG.md.
Run:   python -m experiments.compare --setting hard --tune 4e-4,8e-4,1.6e-3
       python -m experiments.compare --warm gft,sft,sft_right,dft --algorithms dr_grpo
Smoke: python -m experiments.compare --quick
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable

from experiments import cli, compare_report, ranges, sweep, sweep_warm
from experiments.sweep import Config
from rljax import algorithms, processes
from rljax.advantage import Algorithm
from rljax.run import run_dir as folder

SETTINGS = {
    "demo": Config(),
    # A quarter of the digits are random: after the warm start pass@1 is about 0.05,
    # pass@8 0.3 and the entropy 1.0 nat (seed 0). FADE's alpha then rises from 1.5 to 3
    # by step 40; delta leaves 1 when the running average of the entropy has halved.
    "hard": Config(setting="hard", slip=0.25, num_steps=320),
}

QUICK = {
    "algorithms": "fade,grpo",
    "seeds": 2,
    "num_layers": 1,
    "d_model": 32,
    "num_heads": 2,
    "d_ff": 32,
    "warm_steps": 60,
    "warm_prompts": 32,
    "stage_steps": 4,
    "num_steps": 8,
    "num_prompts": 8,
    "num_samples": 4,
    "evaluate_every": 4,
    "num_validation": 16,
    "num_test": 32,
    "tune": "4e-4,8e-4",
}

ALGORITHMS: dict[str, Callable[[Config], Algorithm]] = {
    "fade": lambda c: algorithms.fade(clip=c.clip),
    "grpo": lambda c: algorithms.grpo(clip=c.clip),
    "dr_grpo": lambda c: algorithms.dr_grpo(c.max_tokens, clip=c.clip),
    "power": lambda c: algorithms.power(2.0, clip=c.clip),
    "asym_grpo": lambda c: algorithms.asym_grpo(0.5, clip=c.clip),
    "stapo": lambda c: algorithms.stapo(low=c.clip),
}


def check(config: Config) -> list[str]:
    """The names of the algorithms; raises ValueError for wrong numbers or names."""
    sweep.check(config)
    found = sweep.names(config.algorithms, ALGORITHMS, "--algorithms")
    if not found:
        raise ValueError(
            f"--algorithms must name at least one, got {config.algorithms!r}; name"
            f" some of {', '.join(ALGORITHMS)}."
        )
    warm = sweep.names(config.warm, sweep_warm.OBJECTIVES, "--warm")
    if "gft" in warm and config.num_samples < 3:
        raise ValueError(
            "gft fills groups of 2 stored answers with its own samples, so"
            f" --num-samples must be at least 3, got {config.num_samples}; raise it."
        )
    return found


def main(
    config: Config, run_dir: pathlib.Path, launch: cli.Launch
) -> dict[str, compare_report.Outcome]:
    """Compares algorithms on column addition.

    All seeds of an algorithm train in one program. Learning rates are tuned on
    validation problems. Test results have bootstrap intervals.
    """
    for name in ("mesh", "sampler_mesh", "profile", "track"):
        if value := vars(launch)[name]:
            raise ValueError(
                f"{ranges.flag(name)} must not be given, because a comparison runs all"
                " seeds on one device and writes files of its own, got"
                f" {value}; leave it out."
            )
    found = check(config)
    if processes.count() > 1:
        raise ValueError(
            "a comparison must run in one process, which writes all its files, got"
            f" {processes.count()}; start it on one host."
        )
    with folder.open_run(run_dir, config, resume=launch.resume) as run_dir:
        return compare(config, found, run_dir)


def compare(
    config: Config, found: list[str], run_dir: pathlib.Path
) -> dict[str, compare_report.Outcome]:
    """Trains all algorithms and writes the report; the process must own the folder."""
    setup = sweep.build(config, run_dir)
    params = sweep_warm.warm_start(setup)
    starts = {"": params}
    if config.warm:
        ends = sweep_warm.warm_stage(setup, params)
        starts = {f"{name}+": end for name, end in ends.items()}
    outcomes = {
        f"{start}{name}": sweep.train_population(
            setup,
            f"{start}{name}",
            ALGORITHMS[name](config),
            begin,
            sample=sweep.samples(setup, config.num_samples),
            part=3,
            map_fn=lambda prompts, rng: prompts,
            num_steps=config.num_steps,
        )[0]
        for start, begin in starts.items()
        for name in found
    }
    print(compare_report.write(outcomes, run_dir, sweep.levels(config)))
    print(f"run folder: {run_dir}")
    return outcomes


def setting(arguments: list[str]) -> Config:
    """The configuration of --setting, which the other flags change."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--setting", default="demo")
    name = parser.parse_known_args(arguments)[0].setting
    return SETTINGS.get(name, SETTINGS["demo"])  # the full parser refuses other names


if __name__ == "__main__":
    chosen = setting(sys.argv[1:])
    cli.start("compare", main, chosen, dataclasses.replace(chosen, **QUICK))
