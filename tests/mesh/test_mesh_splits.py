"""Every split of the three axes: the samples of one device, and its parameters.

Shardings never change a number, so only counting shows a device that computes what its
neighbours compute, too, or that holds what should lie in shards.
"""

import dataclasses
import functools

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import advantage as adv
from rljax import loss, mesh, program
from rljax.advantage import Term, algorithm, chain, stateless
from rljax.learn import update
from rljax.model import DecoderConfig, decoder_policy
from rljax.model.config import Experts
from rljax.plan import hlo
from rljax.policy import score
from rljax.rollout.sample import sampler
from rljax.types import Verdict

SPLITS = [
    {"data": 8},
    {"fsdp": 8},
    {"tensor": 8},
    {"data": 2, "fsdp": 4},
    {"data": 4, "fsdp": 2},
    {"data": 4, "tensor": 2},
    {"data": 2, "tensor": 4},
    {"fsdp": 4, "tensor": 2},
    {"fsdp": 2, "tensor": 4},
    {"data": 2, "fsdp": 2, "tensor": 2},
]
FULL = mesh.Layout(update=mesh.ONLY_PROMPTS)
STEPS = 5


def verify(prompts, samples):
    return Verdict.binary(samples.tokens[..., 0] % 3 == prompts.id[:, None] % 3)


def log_tokens(credit, rollout):
    """24 bits of all tokens, which float32 holds exactly."""
    tokens = rollout.samples.tokens.astype(jnp.uint32)
    place = jnp.arange(tokens.size, dtype=jnp.uint32).reshape(tokens.shape)
    words = tokens * (place * jnp.uint32(2654435761) | 1)
    return credit.log(tokens=jnp.sum(words) >> 8)


@functools.cache
def parts(
    num_slots=None,
    num_samples=8,
    max_tokens=24,
    experts=None,
    max_logits=score.MAX_LOGITS,
    **options,
):
    decoder = DecoderConfig(
        **{"vocab_size": 64, "num_layers": 3, "unroll": 1, "tie_embeddings": False},
        **{"d_model": 64, "d_ff": 256, "num_heads": 8, "num_kv_heads": 8},
        head_dim=8,
        experts=experts,
    )
    policy = decoder_policy(decoder, max_logits=max_logits)
    sample = sampler(
        policy,
        num_samples=num_samples,
        max_tokens=max_tokens,
        stop_tokens=(0,),
        num_slots=num_slots,
    )
    method = algorithm(
        policy=Term(
            advantage=chain(stateless(log_tokens), adv.scale_by_fade()),
            weighting=adv.token_mean(),
            loss_fn=loss.ppo_clip(),
        )
    )
    learner = update.learner(
        policy.measure, method, optax.sgd(0.1, momentum=0.9), **options
    )
    return (
        policy,
        learner,
        program.fused(program.actor(policy, sample), learner, verify),
    )


def compiled(sizes, layout=mesh.PLAIN, num_prompts=8, **options):
    """The program on a mesh, its first state and the batches."""
    policy, learner, run = parts(**options)
    place = None if sizes is None else mesh.make(**sizes)

    def begin(key):
        return learner.init(policy.init(key), jax.random.key(1))

    key = jax.random.key(0)
    with mesh.using(place, layout):
        where = None
        if place is not None:
            where = mesh.state_shardings(jax.eval_shape(begin, key), place, layout)
        state = jax.jit(begin, out_shardings=where)(key)
        batches = [
            mesh.shard_prompts(
                jax.tree.map(lambda x: np.asarray(x)[None], prompts),
                place,
                axis=1,
                layout=layout,
            )
            for prompts in (fakes.prompts(num_prompts, seed=k) for k in range(STEPS))
        ]
        step = run.lower(state, batches[0]).compile()
    return step, state, batches


def train(sizes, layout=mesh.PLAIN, **options):
    """FLOPs per device of a step, tokens of each step, parameters after all."""
    step, state, batches = compiled(sizes, layout, **options)
    tokens = []
    for batch in batches:  # refuses a state that lies elsewhere than before
        state, metrics = step(state, batch)
        tokens.append(float(metrics["policy/tokens"][0]))
    return step.cost_analysis()["flops"], tokens, jax.device_get(state.params)


alone = functools.cache(functools.partial(train, None))


@functools.cache
def beginning(**options):
    return jax.device_get(jax.jit(parts(**options)[0].init)(jax.random.key(0)))


def assert_as_on_one(sizes, layout, **options):
    flops, tokens, params = train(sizes, layout, **options)
    want_flops, want_tokens, want = alone(**options)
    assert tokens == want_tokens
    assert len(set(tokens)) == STEPS
    apart = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), params, want)
    assert max(jax.tree.leaves(apart)) < 1e-6
    moved = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), want, beginning(**options))
    assert max(jax.tree.leaves(moved)) > 1e-3
    return flops / want_flops


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SPLITS, ids=lambda sizes: str(sizes))
def test_a_split_gives_the_run_of_one_device_and_an_eighth_of_its_work(sizes):
    assert 0.115 < assert_as_on_one(sizes, FULL) < 0.135


@pytest.mark.slow
@pytest.mark.parametrize(
    "update_rules",
    [mesh.Rules(), mesh.Rules(rows=("data", "fsdp", "tensor"))],
    ids=["heads in the update, too", "tokens over tensor"],
)
def test_other_tables_give_the_same_run(update_rules):
    sizes = {"data": 2, "fsdp": 2, "tensor": 2}
    layout = mesh.Layout(update=update_rules)
    assert 0.115 < assert_as_on_one(sizes, layout) < 0.14


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [{"data": 4, "fsdp": 2}, {"fsdp": 4, "tensor": 2}, {"data": 2, "tensor": 4}],
    ids=str,
)
def test_slots_and_microbatches_give_the_run_of_one_device(sizes):
    # Each of 8, 4 or 2 parts of the prompts has slots of its own, 16 in all.
    assert_as_on_one(sizes, mesh.PLAIN, num_slots=16, num_microbatches=2)


@pytest.mark.slow
def test_a_mixture_of_experts_gives_the_run_of_one_device():
    # Sorted by expert over the mesh, and not on each device, rows would go everywhere
    # and most work be done by all: a share of .66.
    sizes = {"data": 2, "fsdp": 2, "expert": 2}
    experts = Experts(num=4, num_chosen=2, d_ff=64)
    assert 0.115 < assert_as_on_one(sizes, FULL, experts=experts) < 0.14


DISPATCH = mesh.Layout(
    update=dataclasses.replace(mesh.ONLY_PROMPTS, dispatch=("expert",))
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes", [{"expert": 8}, {"data": 2, "fsdp": 2, "expert": 2}], ids=str
)
def test_rows_that_come_to_their_experts_give_the_run_of_one_device(sizes):
    # A row whose expert is elsewhere must add nothing here, forward and backward.
    experts = Experts(num=8, num_chosen=2, d_ff=32, shared_d_ff=16)
    assert_as_on_one(sizes, DISPATCH, experts=experts)


@pytest.mark.slow
def test_where_rows_come_to_the_experts_no_expert_moves():
    # Per token and layer the rows, 8 prompts x 2 samples over 4 devices of d_model,
    # come and go; the kernels of one layer's experts alone would be 8 x 3 x 64 x 32.
    experts = Experts(num=8, num_chosen=2, d_ff=32)
    sizes = {"data": 2, "expert": 4}
    step, _, _ = compiled(
        sizes, DISPATCH, num_samples=2, max_tokens=12, experts=experts
    )
    found = hlo.collectives(step.as_text())
    decoding = [x for x in found if "decode_step" in x.op_name]
    assert max(x.bytes for x in decoding) == 8 * 64 * 4
    update = [x for x in found if "jvp(" in x.op_name]
    assert update
    assert not [x for x in update if "8,64,32]" in x.shape or "8,32,64]" in x.shape]


def moved(step, part):
    """Bytes that collectives move in a part of the program, by kind."""
    found = [x for x in hlo.collectives(step.as_text()) if part in x.op_name]
    return hlo.by_kind(found)


@pytest.mark.slow
def test_an_update_moves_no_activations():
    # Weights and gradients do not grow with the samples, activations do.
    few, many = (
        moved(
            compiled({"fsdp": 4, "tensor": 2}, FULL, num_samples=n, max_tokens=12)[0],
            "jvp(",
        )
        for n in (2, 4)
    )
    assert few == many
    assert few["all-gather"]["bytes"] > 0


@pytest.mark.slow
def test_the_heads_gradient_meets_once_however_many_chunks_are_scored():
    # Its sum over the chunks of a loop is one number per device only in a shard_map.
    # Left to the compiler it would be reduced in each of 6 chunks.
    sizes = {"fsdp": 4, "tensor": 2}
    whole, chunks = (
        moved(
            compiled(sizes, FULL, num_samples=2, max_tokens=12, max_logits=n)[0], "jvp("
        )
        for n in (score.MAX_LOGITS, 4 * 64)
    )
    assert whole == chunks


@pytest.mark.slow
def test_with_twice_the_devices_and_prompts_no_array_of_a_device_grows():
    # What a device held of others' prompts would: rollouts, caches, activations,
    # logits. Weights and gradients lie as before, as `data` copies them.
    few, many = (
        hlo.arrays(
            compiled({"data": n, "fsdp": 2, "tensor": 2}, FULL, num_prompts=8 * n)[
                0
            ].as_text(),
            min_bytes=2**12,
        )
        for n in (1, 2)
    )
    assert set(many) <= set(few)


@pytest.mark.slow
def test_decoding_moves_what_tensor_parallelism_asks_for_and_nothing_else():
    # Per token the embedding's rows and the outputs of attention and feed-forward of 3
    # layers, [4 rows, d_model]. A cache whose heads do not lie as the queries', or
    # weights that are gathered anew, are all-gathers for each token.
    step, _, _ = compiled({"fsdp": 4, "tensor": 2}, FULL, num_samples=2, max_tokens=12)
    found = moved(step, "decode_step")
    assert set(found) == {"all-reduce"}
    assert found["all-reduce"]["bytes"] == 11 * (1 + 2 * 3) * 4 * 64 * 4


@pytest.mark.slow
def test_nothing_of_the_size_of_all_layers_is_whole_anywhere():
    # Kept for the backward pass, the gathered kernels of all layers would be 3 x 64 x
    # 256; sampling keeps a fourth of them on each device, an update one layer's.
    step, state, _ = compiled(
        {"fsdp": 2, "tensor": 4}, FULL, num_samples=2, max_tokens=12
    )
    largest = hlo.arrays(step.as_text(), min_bytes=0)
    whole = 3 * 64 * 256 * 4
    assert max(largest.values()) < 0.75 * whole, largest
    place = jax.tree.leaves(state.params)[0].sharding.mesh
    assert not mesh.copied(state, place, FULL, min_bytes=2**12)


@pytest.mark.slow
def test_an_update_gathers_each_layer_once_forward_and_once_backward():
    # Prompts and completions go through a layer together; apart, each would gather
    # its weights and scatter their gradients. The head is gathered once for both ways.
    step, state, _ = compiled({"fsdp": 4}, FULL, num_samples=2, max_tokens=12)
    kernels = [x for x in jax.tree.leaves(state.params["layers"]) if x.ndim == 3]
    gathered = 2 * sum(x.size for x in kernels) + state.params["head"]["kernel"].size
    assert moved(step, "jvp(")["all-gather"]["bytes"] == 4 * gathered
