"""From a recipe to an experiment: what it reads of other policies is found by tracing.

A recipe says what it reads by reading it. The step is traced; where something was not
measured, its supplier is added: reference parameters, a value head, a teacher that is
told the solution, `old` statistics of stored answers, whole distributions.
"""

from typing import TYPE_CHECKING, Any

from experiments import optimizer, recipes, transforms
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

if TYPE_CHECKING:
    from experiments.train import Config

_VALUE = {"old.extra['value']", "now.extra['value']"}
_WHOLE = {f"now.extra[{n!r}]" for n in ("kl_reverse", "kl_forward", "chi_squared")}
_SUPPLIED = {"reference", "old", "teacher", *_VALUE, *_WHOLE}


def experiment(c: "Config", model: Model, task: Task) -> Experiment:
    """The run of a recipe, with all that it reads.

    Raises:
      ValueError: for what the recipe refuses, or cannot have from the command line.
    """
    numbers = vars(c).get("numbers")  # absent: the recipe's defaults
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
                    f"--algorithm {c.algorithm} must be given what it reads, got none:"
                    f" {missing} On the command line there is none; write an"
                    " experiment of your own."
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
        model=model,
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
            note=f"Drawn at temperature {c.evaluation_temperature:g}.",
        ),
        evaluate_every=c.evaluate_every,
        reference=reference,
        seed=c.seed,
        checkpoint_every=c.checkpoint_every,
        keep=c.keep,
        **around,
    )


def evaluation_slots(c, rows: int) -> int | None:
    """Completions that an evaluation decodes at a time, of so many that it asks for.

    Those of a pretrained model differ much in length. Half of them take no more memory
    than all at once, where prompts are no longer than completions: a slot holds the
    keys of its prompt for itself.
    """
    if c.num_slots is not None or c.model is None:
        return c.num_slots
    return max(1, rows // 2)


def learner(c, policy: Policy, algorithm: Algorithm, whole: bool) -> update.Learner:
    """The optimiser with gates and pieces; `whole`: it compares distributions."""
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
    """The rows of a group: own samples, and what the recipe needs beside them."""
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
    """How far ahead the sampler is; what corrects the sampler corrects that, too."""
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
    """All gates that the flags ask for."""
    found = []
    if c.target_kl is not None:
        found.append(gate.target_kl(c.target_kl))
    if c.target_kl_per_pass is not None:
        found.append(gate.target_kl_per_pass(c.target_kl_per_pass))
    if c.gradient_gate is not None:
        select = _projection if c.lora_rank is None else lambda grads: grads
        found.append(gate.gradient_gate(select, threshold=c.gradient_gate))
    return gate.all_of(*found) if found else None


def _projection(grads: Any) -> Any:
    """The gradient of the output projection, beside a value head or not."""
    return output_projection(grads.get("policy", grads))
