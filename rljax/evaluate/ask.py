"""Evaluates a policy on held-out problems; without side effects on a run."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from rljax import check, mesh, processes, verdict
from rljax.evaluate import estimate
from rljax.evaluate.report import Completion
from rljax.layout import take
from rljax.policy import Policy, returned
from rljax.rollout.sample import greedy, sampler
from rljax.rollout.stop_string import StopStrings
from rljax.task import Task
from rljax.types import Prompts, Sampler, Samples, Verdict, Verify

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# All policies and stages are sampled with one key, and so compared on the same noise.
SEED = 20_000


class Answers(NamedTuple):
    """Completions of held-out problems, and their verdicts.

    correct: bool[P, n]; False where the verifier failed.
    failed: bool[P, n], where the verifier failed.
    """

    correct: Any
    failed: Any
    samples: Samples


def _answers(given: Verdict, samples: Samples) -> Answers:
    return Answers(given.correct & ~given.failed, given.failed, samples)


Ask = Callable[[Any, Prompts], Answers]


def ask(sample: Sampler, verify: Verify, *, in_graph: bool = True) -> Ask:
    """Makes (params, prompts) -> answers.

    Args:
      sample: draws the completions.
      verify: judges them.
      in_graph: whether the verifier can be traced. If so, the returned function can be
        traced as well. If not, the verifier is called with NumPy arrays, and only the
        sampler is compiled.
    """

    def draw(params, prompts):
        prompts = mesh.constrain(prompts)
        drawn = sample(params, prompts, jax.random.key(SEED))
        return returned.drawn(drawn, prompts)[0]

    def judged(params, prompts):
        samples = draw(params, prompts)
        return _answers(verdict.of(verify, prompts, samples), samples)

    if in_graph:
        return judged
    draw_only = jax.jit(draw)

    def judged_on_host(params, prompts):
        samples = processes.fetch(draw_only(params, prompts))
        return _answers(verdict.shared(verify, prompts, samples), samples)

    return judged_on_host


def in_batches(
    fn: Callable,
    prompts: Prompts,
    size: int,
    axis: int = 0,
    *,
    largest: int | None = None,
    doing: str = "",
) -> Callable:
    """params -> `fn(params, prompts)` as NumPy arrays, computed batch by batch.

    All batches have the same size, so that one program serves them. The last one is
    filled up with the first problems, whose second answers are dropped.

    Args:
      fn: (params, prompts [size, ...]) -> pytree.
      prompts: all problems.
      size: problems of a batch; raised to a multiple of the mesh's devices.
      axis: the axis of problems in the result of `fn`.
      largest: size of the largest set that `fn` is used for, so that all sets have
        batches of the same size. None: `fn` is used for this set only.
      doing: the subject of progress messages; "" prints none.
    """
    check.count("size", size)
    rows = len(prompts.id)

    def run(params):
        devices = mesh.size()
        width = -(-min(size, largest or rows) // devices) * devices
        count = -(-rows // width)
        index = np.resize(np.arange(rows), (count, width))
        parts = (take(prompts, i) for i in index)
        parts = _with_progress(parts, count, doing)
        out = [processes.fetch(fn(params, part)) for part in parts]
        keep = (slice(None),) * axis + (slice(rows),)
        return jax.tree.map(lambda *x: np.concatenate(x, axis)[keep], *out)

    return run


def _with_progress(parts: Iterable, count: int, doing: str) -> Iterator:
    """The parts; prints every 20 seconds how many are done."""
    last = time.monotonic()
    for i, part in enumerate(parts):
        if doing and i and time.monotonic() - last >= 20:
            last = time.monotonic()
            print(f"{doing}: {i} of {count} batches done", flush=True)
        yield part


class Evaluation(NamedTuple):
    """How a run evaluates its policy.

    validate: params -> (metrics by name, some completions with their verdicts).
    test: params -> (stage for the tables, some completions). None if there are no test
      problems; then there are no tables.
    tables: stages by name -> tables that compare them.
    programs: the compiled functions, by name: ((params, batch) -> answers, a batch).
    """

    validate: Callable[[Any], tuple[Mapping[str, float], list[Completion]]]
    test: Callable[[Any], tuple[estimate.Stage, list[Completion]]] | None
    tables: Callable[[Mapping[str, estimate.Stage]], list[estimate.Table]]
    programs: Mapping[str, tuple[Callable, Prompts]]


def held_out(
    policy: Policy,
    task: Task,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_tokens: int,
    stop_tokens: tuple[int, ...],
    stop_strings: StopStrings | None = None,
    batch_size: int,
    num_samples: int = 8,
    num_slots: int | None = None,
    in_graph: bool = True,
    note: str = "",
) -> Evaluation:
    """An evaluation on the task's held-out problems, sampled and greedy.

    Validation and test use batches of the same size, and so the same two programs.

    Args:
      policy: the policy that is evaluated; samples have its temperature.
      task: its validation and test problems and its verifier.
      tokenizer: decodes completions for display.
      max_tokens, stop_tokens, stop_strings, num_slots: as in `sampler`.
      batch_size: problems of a batch.
      num_samples: completions per problem; pass@k is reported for k = 1 and this
        number.
      in_graph: whether the task's verifier can be traced.
      note: a sentence below the table.
    """
    common = {
        "max_tokens": max_tokens,
        "stop_tokens": stop_tokens,
        "stop_strings": stop_strings,
        "num_slots": num_slots,
    }
    fns = [
        ask(sample, task.verify, in_graph=in_graph)
        for sample in (
            sampler(policy, num_samples=num_samples, **common),
            greedy(policy, **common),
        )
    ]
    sampled, likely = map(jax.jit, fns) if in_graph else fns
    largest = max(len(task.validation.id), len(task.test.id))

    def batched(fn, prompts, doing):
        return in_batches(fn, prompts, batch_size, largest=largest, doing=doing)

    validation = batched(sampled, task.validation, "evaluation")
    test_sampled = batched(sampled, task.test, "test, sampled")
    test_likely = batched(likely, task.test, "test, greedy")
    ks = tuple(dict.fromkeys((1, num_samples)))

    def validate(params):
        answers = validation(params)
        found = estimate.summary(answers.correct, ks) | _lengths(answers)
        return found, _completions(answers, task.validation, tokenizer, 8)

    def test(params):
        answers = test_sampled(params)
        stage = estimate.Stage(answers.correct, test_likely(params).correct[:, 0])
        return stage, _completions(answers, task.test, tokenizer, 12)

    def tables(stages):
        return _tables(stages, task, ks, note)

    problems = np.arange(len(task.validation.id))
    batch = take(task.validation, np.resize(problems, min(batch_size, largest)))
    programs = {"evaluation, sampled": (fns[0], batch)}
    if len(task.test.id):
        programs["evaluation, greedy"] = (fns[1], batch)
    tested = test if len(task.test.id) else None
    return Evaluation(validate, tested, tables, programs if in_graph else {})


def _tables(
    stages: Mapping[str, estimate.Stage], task: Task, ks: tuple[int, ...], note: str
) -> list[estimate.Table]:
    """A table of all problems and, if the task has groups, a second one by groups."""
    first = estimate.compare(stages, ks)
    found = [first._replace(note=f"{first.note} {note}".strip())]
    if task.group is not None:
        label, group = task.group
        found.append(estimate.compare_by_group(stages, group, label))
    return found


def _lengths(answers: Answers) -> dict[str, float]:
    """Mean length in tokens, share of finished completions, and how many of these are
    right.

    A policy that only learns to stop in time raises the second but not the third. If
    the verifier failed, the share of these, too: pass@k counts them as wrong.
    """
    ended = np.asarray(answers.samples.finished)
    found = {
        "length_mean": float(np.mean(np.sum(answers.samples.mask, -1))),
        "finished_share": float(np.mean(ended)),
    }
    if np.any(ended):
        found["right_of_finished"] = float(np.mean(answers.correct[ended]))
    if np.any(answers.failed):
        found["verifier_failed_share"] = float(np.mean(answers.failed))
    return found


def _completions(
    answers: Answers, prompts: Prompts, tokenizer, count: int
) -> list[Completion]:
    """The first sample of each of the first `count` problems."""

    def text(tokens):
        return tokenizer.decode(tokens, skip_special_tokens=False)

    samples = answers.samples
    return [
        Completion(
            stage="",
            prompt=text(prompts.tokens[i][: prompts.length[i]]),
            text=text(samples.tokens[i, 0][samples.mask[i, 0]]),
            answer=bytes(prompts.data["answer"][i]).rstrip(b"\0").decode(),
            correct=bool(answers.correct[i, 0]),
        )
        for i in range(min(count, len(prompts.id)))
    ]
