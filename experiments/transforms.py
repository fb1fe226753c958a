"""The flags of policies: LoRA, a value head, references, replay, int8 rollouts."""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

from experiments import ranges, recipes
from rljax.advantage import Algorithm, importance
from rljax.learn import Learner, reference
from rljax.model import Model
from rljax.model.hugging_face import adapter
from rljax.policy import Policy, int8_decoding, lora, with_value_head
from rljax.policy.lora import Lora
from rljax.types import TrainState

if TYPE_CHECKING:
    from experiments.train import Config


def check(c: "Config") -> None:
    """Raises ValueError for flags that do not fit each other."""
    lora_of(c)
    if c.reference_ema is not None and c.reference_every is None:
        raise ValueError(
            f"--reference-ema {c.reference_ema} must come with --reference-every, got"
            " none; --reference-every 1 moves the reference after each training step."
        )
    stored = c.algorithm in recipes.STORED + recipes.MIXED
    if stored and c.replay_routes:
        raise ValueError(
            "--replay-routes must have samples alone, got --algorithm"
            f" {c.algorithm}, which learns from stored answers that nothing has routed;"
            " leave the flag out."
        )
    if stored and rolls_in_int8(c):
        raise ValueError(
            "--rollout-weights int8 must have samples alone, got --algorithm"
            f" {c.algorithm}, which learns from stored answers of which nobody knows"
            " how likely they were; leave the flag out."
        )


def rolls_in_int8(c: "Config") -> bool:
    """Whether the sampler is by design not the policy."""
    return c.rollout_weights == "int8"


def sampled(c: "Config", policy: Policy) -> Policy:
    """What the sampler draws from, of the policy that is trained."""
    return int8_decoding(policy) if rolls_in_int8(c) else policy


def corrected(c: "Config", algorithm: Algorithm) -> Algorithm:
    """The recipe, which then also weighs by how far the sampler is from the policy."""
    if rolls_in_int8(c) and c.algorithm not in recipes.CORRECTING:
        return importance.corrected(algorithm)
    return algorithm


def lora_of(c: "Config") -> Lora | None:
    """The adapters that the flags ask for."""
    if c.lora_rank is None:
        return None
    try:
        return Lora(
            rank=c.lora_rank,
            alpha=c.lora_alpha,
            targets=tuple(c.lora_targets.split(",")),
        )
    except ValueError as error:
        raise ValueError(f"--lora-targets: {error}") from error


def around(
    c: "Config", model: Model, *, value_head: bool
) -> tuple[Policy, dict[str, Any]]:
    """The policy that is trained, and how an `Experiment` goes in and out of it."""
    require_experts(c, model)
    policy = model.policy(c.temperature, replay_routes=c.replay_routes)
    spec = lora_of(c)
    require_whole(spec, model)
    if spec is not None:
        policy = lora.adapted(policy, spec)
    if value_head:
        policy = with_value_head(policy, d_model=model.config.d_model)

    def enter(params, key):
        if spec is not None:
            params = lora.with_adapters(params, spec, key)
        return policy.init(key) | {"policy": params} if value_head else params

    def export(params):
        return params["policy"] if value_head else params

    parts: dict[str, Any] = {"enter_fn": enter, "export_fn": export, "adapters": spec}
    if spec is not None:
        parts["trains"] = _trains
        parts["save_also"] = lambda folder, state: _save(c, spec, model, folder, state)
    return policy, parts


def asked(c: "Config", model: Model) -> Policy:
    """The policy that evaluations ask: it reads adapters where there are some."""
    policy, spec = model.policy(c.evaluation_temperature), lora_of(c)
    return policy if spec is None else lora.adapted(policy, spec)


def require_experts(c: "Config", model: Model) -> None:
    """Raises ValueError if routes are to be replayed of a model that has none."""
    if c.replay_routes and model.config.experts is None:
        raise ValueError(
            "--replay-routes must have a --model that is a mixture of experts, got a"
            " dense one; leave the flag out."
        )


def require_whole(spec: Lora | None, model: Model) -> None:
    """Raises ValueError for adapters that PEFT's format cannot hold."""
    if spec is not None and model.metadata is not None:
        try:
            adapter.require_whole(spec, model.metadata.config["model_type"])
        except ValueError as error:
            raise ValueError(f"--lora-targets: {error}") from error


def without_replay(c: "Config") -> "Config":
    """For policies that choose experts themselves: reference and teacher."""
    return dataclasses.replace(c, replay_routes=False)


def _trains(path: tuple[str, ...]) -> bool:
    return lora.is_adapter(path) or path[0] == "value"


def _save(
    c, spec: Lora, model: Model, run_dir: pathlib.Path, state: TrainState
) -> None:
    """The adapters, beside the policy, which is merged."""
    folder = run_dir / "adapters"
    if not folder.exists():  # a finished run that was resumed has them
        base = None if c.model is None else str(c.model)
        adapters = state.params.get("policy", state.params)
        named = {} if model.metadata is None else model.metadata.config
        kind = named.get("model_type", "llama")
        adapter.save(folder, adapters, spec, base_model=base, model_type=kind)


def with_reference(c: "Config", learner: Learner) -> Learner:
    """The learner whose reference follows the policy, if the flags ask for it."""
    if c.reference_every is None:
        return learner
    if c.reference_ema is None:
        update = reference.renewed(every=c.reference_every)
    else:
        update = reference.averaged(decay=c.reference_ema, every=c.reference_every)
    return reference.following(learner, update)


def require_reference(c: "Config", there: bool) -> None:
    """Raises ValueError if a reference is to follow that the recipe never reads."""
    if c.reference_every is not None and not there:
        raise ValueError(
            f"{ranges.flag('reference_every')} needs a recipe that reads a reference,"
            f" but --algorithm {c.algorithm} reads none; leave the flag out, or give"
            " the recipe a KL coefficient above 0 where it has one."
        )
