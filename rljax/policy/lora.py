"""LoRA: the layers' matrices are frozen; a low-rank product beside each is trained.

    y = x W + s (x A) B,    A [in, rank], B [rank, out],    s = alpha / rank

B starts at 0, so the policy begins as the base model. Only the adapters are trained.
`TrainState.frozen` holds the base once, for the policy and for its reference.

    spec = Lora(rank=8, alpha=16)
    policy = lora.adapted(policy, spec)
    Experiment(
        enter_fn=lambda params, key: lora.with_adapters(params, spec, key),
        trains=lora.is_adapter,
        adapters=spec, ...)

Training uses the factored form. With merged weights the backward pass would compute the
gradient of each whole matrix: a third more arithmetic and two more copies of the
matrices. (12 layers of SmolLM2's width, rank 16, remat: 139 GFLOP per update factored,
184 merged, 178 for full training.) Sampling merges the weights once per rollout, when
it casts them anyway, so a decode step costs no more than without LoRA.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rljax import check, keys
from rljax.policy.base import Policy

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
"""The matrices of a decoder's layers, by name."""

A, B = "lora_a", "lora_b"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """Which matrices are adapted, and how.

    rank: of the product, at least 1.
    alpha: above 0; the product is scaled by alpha / rank.
    rank_stabilised: scaled by alpha / sqrt(rank) instead (rsLoRA).
    targets: names of `TARGETS`, as a tuple.

    Source: LoRA, arXiv:2106.09685, section 4.1; rsLoRA, arXiv:2312.03732 (both as in
      PEFT). Variants: A is uniform in +- 1/sqrt(in), as in PEFT; the paper's is normal.
      There is no dropout, as sampler and learner would then differ.
    """

    rank: int
    alpha: float
    rank_stabilised: bool = False
    targets: Sequence[str] = TARGETS

    def __post_init__(self):
        check.count("rank", self.rank)
        check.number("alpha", self.alpha, above=0)
        known = [name for name in TARGETS if name in self.targets]
        if not known or sorted(known) != sorted(self.targets):
            raise ValueError(
                f"targets must be names of {', '.join(TARGETS)}, at least one and each"
                f" once, got {list(self.targets)}; remove the others."
            )

    @property
    def scale(self) -> float:
        """s, the factor of the product."""
        return self.alpha / self.rank ** (0.5 if self.rank_stabilised else 1.0)


def with_adapters(params: dict[str, Any], spec: Lora, key: jax.Array) -> dict[str, Any]:
    """The parameters with adapters beside the kernels that `spec` names.

    Adapters are float32: `lora_a` [L, in, rank] is random, `lora_b` [L, rank, out] 0.
    Kernels that have adapters already keep them.

    Args:
      params: a decoder's parameters, or a tree that contains them; layers are stacked
        along axis 0.
      spec: which kernels, and the rank.
      key: a PRNG key; each matrix has a stream of its own below it.

    Raises:
      ValueError: if a target does not exist, or exists once per expert.
    """
    found = set()

    def add(path, module):
        if path[-1] not in spec.targets:
            return module
        found.add(path[-1])
        if A in module:
            return module
        if module["kernel"].ndim != 3:
            raise ValueError(
                f"targets must be matrices of the layers, got {path[-1]!r}, of which"
                " each expert has one; remove it."
            )
        num_layers, width, out = module["kernel"].shape
        own = keys.stream(key, keys.Stream.ADAPTER, TARGETS.index(path[-1]))
        size, bound = (num_layers, width, spec.rank), width**-0.5
        a = jax.random.uniform(own, size, jnp.float32, -bound, bound)
        return {**module, A: a, B: jnp.zeros((num_layers, spec.rank, out))}

    params = _over_modules(add, params)
    if missing := sorted(set(spec.targets) - found):
        raise ValueError(
            f"targets must be matrices of the layers, but there is no {missing}; pass"
            " the parameters of a decoder."
        )
    return params


def is_adapter(path: tuple[str, ...]) -> bool:
    """Whether the leaf with these names belongs to an adapter; for `frozen.split`."""
    return path[-1] in (A, B)


def merged(params: dict[str, Any], spec: Lora) -> dict[str, Any]:
    """Parameters without adapters: W + s A B, summed in float32, in W's dtype."""

    def merge(path, module):
        del path
        if A not in module:
            return module
        kernel = module["kernel"]
        more = spec.scale * (module[A] @ module[B])
        rest = {k: v for k, v in module.items() if k not in (A, B)}
        total = kernel.astype(jnp.float32) + more
        return {**rest, "kernel": total.astype(kernel.dtype)}

    return _over_modules(merge, params)


def adapted(policy: Policy, spec: Lora) -> Policy:
    """The policy whose parameters are those of `with_adapters`.

    Sampling uses merged weights, everything else the factored form. The two agree up to
    rounding; the metric `gap/sampler_learner_max` shows it.

    Args:
      policy: a decoder's policy; put a value head on top of the result.
      spec: the one that the adapters were made with.
    """
    check.kind("policy", policy, Policy, "decoder_policy(config)")
    check.kind("spec", spec, Lora, "Lora(rank=8, alpha=16)")

    def scaled(params):
        def scale(path, module):
            del path
            if A not in module:
                return module
            return {**module, B: spec.scale * module[B]}

        return _over_modules(scale, params)

    def measure(params, prompts, samples, reference=None):
        if reference is not None:
            reference = scaled(reference)
        return policy.measure(scaled(params), prompts, samples, reference)

    def hidden(params, prompts, samples):
        return policy.hidden(scaled(params), prompts, samples)

    return policy._replace(
        init=lambda key: with_adapters(policy.init(key), spec, key),
        prefill=lambda params, prompts: policy.prefill(scaled(params), prompts),
        hidden=hidden,
        logits=lambda params, states: policy.logits(scaled(params), states),
        measure=measure,
        decode_params=lambda params: policy.decode_params(merged(params, spec)),
    )


def _over_modules(fn: Callable[..., Any], tree: Any, path: tuple[str, ...] = ()) -> Any:
    """Replaces each dictionary that holds a kernel by `fn(path, dictionary)`."""
    if not isinstance(tree, dict):
        return tree
    if "kernel" in tree and path:
        return fn(path, tree)
    return {k: _over_modules(fn, v, (*path, k)) for k, v in tree.items()}
