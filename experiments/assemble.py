"""Builds the experiment of a recipe, with everything that the recipe reads.

Recipes do not declare what they read. Instead, the training step is traced. If the
recipe reads something that was not measured, its supplier is added, and the step is
traced again. Suppliers are reference parameters, a value head, a teacher that sees the
solution, `old` statistics of stored answers, and whole distributions.
"""

from typing import Any

from experiments import optimizer, recipes, transforms
from experiments.flags import Config
from rljax import data, decoupled, evaluate, program
from rljax.advantage import Algorithm
from rljax.experiment import Experiment, require_traced
from rljax.learn import gate, update
from rljax.learn.dynamic_sampling import dynamic_sampling
from rljax.learn.gate import output_projection
from rljax.model import Model
from rljax.policy import (
    Policy,
    against_reference,
    privileged_teacher,
)
from rljax.rollout import StopStrings, mixed, stop_strings
from rljax.rollout.sample import greedy, sampler
from rljax.task import Task
from rljax.task import problems as own
from rljax.types import NotMeasured, Sampler

_VALUE = {"old.extra['value']", "now.extra['value']"}
_WHOLE = {f"now.extra[{n!r}]" for n in ("kl_reverse", "kl_forward", "chi_squared")}
# With fewer rows a decode step takes about as long, the time to read the weights.
_FEWEST_SLOTS = 128
_SUPPLIED = {"reference", "old", "teacher", *_VALUE, *_WHOLE}


def experiment(c: Config, model: Model, task: Task) -> Experiment:
    """The experiment that a configuration describes.

    Args:
      c: the configuration.
      model: to train.
      task: to train on.

    Raises:
      ValueError: if the recipe refuses its numbers, or reads something that the command
        line cannot supply.
    """
    numbers = vars(c).get("numbers")  # only a config of `with_numbers` has them
    numbers = recipes.numbers_of(c.algorithm)() if numbers is None else numbers
    shared = {"max_tokens": c.max_tokens, "num_samples": c.num_samples}
    algorithm = transforms.corrected(c, recipes.make(c.algorithm, numbers, shared))
    needs: set[str] = set()
    while True:
        made = _assemble(c, model, task, algorithm, needs)
        try:
            require_traced(made)
        except NotMeasured as missing:
            if missing.name in needs | ({missing.name} - _SUPPLIED):
                raise ValueError(
                    f"--algorithm {c.algorithm} must get what it reads, got none:"
                    f" {missing} The command line cannot supply it; write your own"
                    " experiment."
                ) from missing
            needs.add(missing.name)
        else:
            transforms.require_reference(c, made.reference)
            if needs:
                print(f"{c.algorithm} reads, and gets: {', '.join(sorted(needs))}")
            return made


def _assemble(c, model: Model, task: Task, algorithm: Algorithm, needs) -> Experiment:
    value_head = bool(_VALUE & needs)
    policy, around = transforms.around(c, model, value_head=value_head)
    free, _ = transforms.around(
        transforms.without_replay(c), model, value_head=value_head
    )
    whole = bool(_WHOLE & needs)
    reference = whole or "reference" in needs
    learns = learner(c, policy, algorithm, whole)
    measures = bool(_VALUE & needs) or transforms.rolls_in_int8(c)
    in_python = c.verifier == "python"
    rows = (c.draw_prompts or c.num_prompts) * c.num_samples
    problems = max(1, rows // c.evaluation_samples)
    return Experiment(
        model=transforms.with_stored_adapters(c, model),
        task=task,
        act=program.actor(
            free,
            samples(c, transforms.sampled(c, policy), model, "old" in needs),
            measure_old=policy.measure if measures else None,
            teacher=privileged_teacher(free) if "teacher" in needs else None,
        ),
        learner=transforms.with_reference(c, learns) if reference else learns,
        verify=task.verify,
        glue=program.split if in_python else program.fused,
        ahead=ahead(c, policy),
        prompts=data.stream(
            task.train,
            num_prompts=c.draw_prompts or c.num_prompts,
            seed=c.seed,
            steps_per_dispatch=c.steps_per_dispatch,
        ),
        num_steps=c.num_steps,
        steps_per_dispatch=c.steps_per_dispatch,
        evaluation=evaluate.held_out(
            transforms.asked(c, model),
            task,
            model.tokenizer,
            max_tokens=c.max_tokens,
            stop_tokens=model.stop_tokens,
            stop_strings=stops(model),
            batch_size=problems,
            num_samples=c.evaluation_samples,
            num_slots=evaluation_slots(c, problems * c.evaluation_samples),
            in_graph=not in_python,
            note=f"Sampled at temperature {c.evaluation_temperature:g}.",
        ),
        evaluate_every=c.evaluate_every,
        reference=reference,
        seed=c.seed,
        checkpoint_every=c.checkpoint_every,
        keep=c.keep,
        **around,
    )


def evaluation_slots(c, rows: int) -> int | None:
    """Completions that an evaluation decodes at a time; `rows` are asked for at once.

    Lengths of a pretrained model's completions differ much, so half as many slots do
    nearly the same work. They need no more memory if prompts are no longer than
    completions: each slot has its own copy of the prompt's keys.
    """
    if c.num_slots is not None or c.model is None:
        return c.num_slots
    return rows // 2 if rows // 2 >= _FEWEST_SLOTS else None


def learner(c, policy: Policy, algorithm: Algorithm, whole: bool) -> update.Learner:
    """The learner, with optimiser, gates and microbatches.

    Args:
      c: the configuration.
      policy: to train.
      algorithm: of the recipe.
      whole: whether the recipe compares whole distributions with the reference's.
    """
    make = optimizer.BY_NAME[c.optimizer]
    made = update.learner(
        against_reference(policy) if whole else policy.measure,
        algorithm,
        make(
            optimizer.linear_decay(
                c.learning_rate,
                (c.schedule_steps or c.num_steps) * c.num_passes * c.num_minibatches,
            ),
            c.gradient_clip,
            c.mu_dtype,
        ),
        gate=gates(c),
        num_passes=c.num_passes,
        num_minibatches=c.num_minibatches,
        num_microbatches=c.num_microbatches,
        num_lengths=c.num_lengths,
        num_group_parts=c.num_group_parts,
    )
    if c.draw_prompts is None:
        return made
    return dynamic_sampling(made, c.num_prompts)


def samples(c, policy: Policy, model: Model, measure: bool) -> Sampler:
    """The sampler: the policy's own samples, and the other rows that a recipe needs.

    Args:
      c: the configuration.
      policy: to sample from.
      model: for its stop tokens and strings.
      measure: whether stored answers need `old` statistics.
    """
    common = {
        "max_tokens": c.max_tokens,
        "stop_tokens": model.stop_tokens,
        "stop_strings": stops(model),
    }
    sampled = sampler(
        policy, num_samples=c.num_samples, num_slots=c.num_slots, **common
    )
    if c.algorithm in recipes.GREEDY:
        return mixed.side_by_side(sampled, greedy(policy, **common))
    if c.algorithm not in recipes.STORED + recipes.MIXED:
        return sampled
    stored = mixed.stored_answers()
    if measure:
        stored = mixed.with_old(stored, policy.measure)
    return (
        stored if c.algorithm in recipes.STORED else mixed.side_by_side(sampled, stored)
    )


def ahead(c, policy: Policy) -> decoupled.Ahead | None:
    """How far the sampler is ahead of the learner; None: they take turns.

    Recipes that correct for a mismatched sampler correct for staleness, too, so `old`
    is measured for them.
    """
    if c.staleness is None:
        return None
    measure_old = policy.measure if c.algorithm in recipes.CORRECTING else None
    return decoupled.Ahead(c.staleness, measure_old=measure_old)


def stops(model: Model) -> StopStrings | None:
    """The stop strings of a model, as the sampler takes them."""
    if not model.stop_strings:
        return None
    try:
        return stop_strings(model.stop_strings, own.spelled_by(model))
    except ValueError as error:
        raise ValueError(f"--stop, or generation_config.json: {error}") from error


def gates(c) -> gate.Gate | None:
    """The gates that the flags ask for, as one gate; None: no gate."""
    found = []
    if c.target_kl is not None:
        found.append(gate.target_kl(c.target_kl))
    if c.target_kl_per_pass is not None:
        found.append(gate.target_kl_per_pass(c.target_kl_per_pass))
    if c.gradient_gate is not None:
        whole = transforms.lora_of(c) is None
        select = _projection if whole else lambda grads: grads
        found.append(gate.gradient_gate(select, threshold=c.gradient_gate))
    return gate.all_of(*found) if found else None


def _projection(grads: Any) -> Any:
    """The gradient of the output projection, with or without a value head."""
    return output_projection(grads.get("policy", grads))
