"""Held-out problems put to a policy, for curves and for the table at the end."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import numpy as np

from experiments.task import Task
from rljax import evaluate
from rljax import program as loop
from rljax.evaluate import report
from rljax.model import decoder_policy
from rljax.rollout.sample import greedy, sampler

if TYPE_CHECKING:
    from experiments.arithmetic import Config


class Judge:
    """Asks a policy held-out problems, in batches of one shape: two programs in all."""

    def __init__(self, config: "Config", task: Task):
        self._task, self._size = task, config.num_validation
        common = {
            "max_tokens": config.max_tokens,
            "stop_tokens": task.stop_tokens,
        }
        self._temperature = config.evaluation_temperature
        policy = decoder_policy(task.decoder, temperature=self._temperature)
        self._sampled = self._program(sampler(policy, num_samples=8, **common))
        self._greedy = self._program(greedy(policy, **common))

    def compare(self, stages: Mapping[str, evaluate.Stage]) -> evaluate.Table:
        """`evaluate.compare`, and at which temperature the samples were drawn."""
        table = evaluate.compare(stages)
        note = f" Drawn at temperature {self._temperature:g}, whatever RL sampled at."
        return table._replace(note=table.note + note)

    def _program(self, sample):
        def ask(params, prompts):
            # One fixed key: stages of a run are compared on the same noise.
            samples, _ = sample(params, prompts, jax.random.key(20_000))
            verdict = loop.verdict_of(self._task.verify, prompts, samples)
            return verdict.correct, samples

        return jax.jit(ask)

    def _ask(self, program, params, prompts):
        rows = len(prompts.id)
        size = min(self._size, rows)
        # The last batch is moved back to have full size: some rows are asked twice.
        starts = [min(i, rows - size) for i in range(0, rows, size)]
        out = [
            jax.device_get(
                program(params, jax.tree.map(lambda x, i=i: x[i : i + size], prompts))
            )
            for i in starts
        ]
        new = [slice(max(0, i - s), None) for i, s in zip(range(0, rows, size), starts)]
        return jax.tree.map(
            lambda *x: np.concatenate([y[n] for y, n in zip(x, new, strict=True)]), *out
        )

    def validation(self, params) -> Mapping[str, float]:
        """Metrics for the curves."""
        correct, samples = self._ask(self._sampled, params, self._task.validation)
        length = np.mean(np.sum(samples.mask, -1))
        return evaluate.summary(correct) | {"length_mean": float(length)}

    def test(self, params) -> tuple[evaluate.Stage, list[report.Completion]]:
        """The stage for the table at the end, and some completions with verdicts."""
        task = self._task
        correct, samples = self._ask(self._sampled, params, task.test)
        likely, _ = self._ask(self._greedy, params, task.test)
        shown = [
            report.Completion(
                stage="after RL",
                prompt=_text(task, task.test.tokens[i][: task.test.length[i]]),
                text=_text(task, samples.tokens[i, 0][samples.mask[i, 0]]),
                answer=bytes(task.test.data["answer"][i]).rstrip(b"\0").decode(),
                correct=bool(correct[i, 0]),
            )
            for i in range(min(12, len(correct)))
        ]
        return evaluate.Stage(correct, likely[:, 0]), shown


def _text(task: Task, tokens) -> str:
    return task.tokenizer.decode(tokens, skip_special_tokens=False)
