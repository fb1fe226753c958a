"""Estimates the arithmetic, memory and time of a training step before it runs.

Arithmetic is counted in FLOPs of matrix products, 2 per multiply-add. `decoder_flops`
is a lower bound: attention reads only the tokens so far, and each prompt is computed
once. `traced_flops` counts what the traced program computes; the difference is work on
padding, or recomputation. On a mesh, each device is assumed to do an equal part.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from rljax import mesh, verdict
from rljax.model import DecoderConfig, attention_blocks, attention_cached
from rljax.program import Program, Sizes

# float32 logits that scoring holds at once; equals the default of `decoder_policy`.
MAX_LOGITS = 2**27


class Flops(NamedTuple):
    """FLOPs of the matrix products of a training step, 2 per multiply-add.

    prompts: the rollout without the sampler's loop: prefill, and measuring a reference.
    sampling: the sampler's loop, with T tokens per sample.
    training: all optimiser steps, forward and backward.
    """

    prompts: float
    sampling: float
    training: float

    def over(self, devices: int) -> "Flops":
        """The part of one device."""
        return Flops(*(each / devices for each in self))


class Memory(NamedTuple):
    """Bytes that the compiled program takes on a device.

    The last three fields are parts of `temporaries`, needed at different times.
    """

    parameters: int
    optimizer: int
    rest: int  # other state (algorithm, gate, reference, key), and the prompts
    outputs: int  # without those that reuse the donated state's memory: metrics
    temporaries: int
    code: int
    gradients: int
    cache: int
    logits: int

    @property
    def total(self) -> int:
        """Bytes in all; the last three fields are parts of `temporaries`."""
        return sum(self[:6])


class Rates(NamedTuple):
    """Measured rates of a device.

    training, decoding: FLOP/s of the products of training and of decoding.
    memory: bytes/s.
    """

    training: float
    decoding: float
    memory: float


class Plan(NamedTuple):
    """The cost of a training step, per device.

    sizes: of the program.
    devices: number of devices of the mesh.
    num_parameters: of the policy, frozen ones included.
    arithmetic: lower bound on the FLOPs.
    traced: FLOPs of the traced program.
    loops_counted_once: FLOPs of one dispatch with every loop body counted once: (all
      operations, from the compiler; matrix products, from the jaxpr).
    memory: of the compiled program.
    rates: of the device.
    seconds: lower bound on the seconds of each part, at these rates.
    tokens: sampled per training step, on all devices.
    """

    sizes: Sizes
    devices: int
    num_parameters: int
    arithmetic: Flops
    traced: Flops
    loops_counted_once: tuple[float, float]
    memory: Memory
    rates: Rates
    seconds: Flops
    tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Sampled tokens over the time of the whole step."""
        return self.tokens / sum(self.seconds)


def plan_step(program: Program, sizes: Sizes, compiled, rates: Rates) -> Plan:
    """The plan of a program.

    Args:
      program: to plan.
      sizes: `program.sizes()`.
      compiled: `program.compile()`.
      rates: measured at the shapes of `matmul_shapes`.
    """
    devices = program.num_devices
    arithmetic = decoder_flops(sizes).over(devices)
    run = jax.make_jaxpr(program.fused())(program.state, program.prompts)
    params = jax.tree.leaves((program.state.params, program.state.frozen))
    return Plan(
        sizes=sizes,
        devices=devices,
        num_parameters=sum(x.size for x in params),
        arithmetic=arithmetic,
        traced=traced_flops(program, sizes).over(devices),
        loops_counted_once=(
            float(compiled.cost_analysis()["flops"]),
            float(sum(count_matmul_flops(run.jaxpr, repeat=lambda length: 1))),
        ),
        memory=memory(program, sizes, compiled),
        rates=rates,
        seconds=Flops(
            prompts=arithmetic.prompts / rates.training,
            sampling=max(
                arithmetic.sampling / rates.decoding,
                bytes_decoded(program, sizes) / rates.memory,
            ),
            training=arithmetic.training / rates.training,
        ),
        tokens=sizes.num_prompts * sizes.num_samples * sizes.max_tokens,
    )


def decoder_flops(sizes: Sizes) -> Flops:
    """A lower bound on the FLOPs of a training step on all devices."""
    c, P, B = sizes.decoder, sizes.num_prompts, sizes.num_prompts * sizes.num_samples
    S, T = sizes.prompt_tokens, sizes.max_tokens
    layers, head = decoder_weights(c)

    def attention(pairs):  # two products per pair: with the key, and with the value
        return 4.0 * c.num_layers * c.num_heads * c.head_dim * pairs

    prompts = 2.0 * P * (S * layers + head) + attention(P * S * (S + 1) / 2)
    # The prompt predicts the first token, and the decoder never reads the last one.
    rest = 2.0 * B * (T - 1) * (layers + head)
    rest += attention(B * ((T - 1) * S + T * (T - 1) / 2))
    # Training also computes the first token's logits for each sample, not per prompt,
    # and the prompt once more for each part of its group.
    forward = sizes.num_group_parts * prompts + rest + 2.0 * (B - P) * head
    return Flops(prompts, rest, 3 * sizes.num_passes * forward)


def decoder_weights(c: DecoderConfig) -> tuple[int, int]:
    """Number of weights used per token: in all layers, and in the output head."""
    heads = c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    width, routes = c.d_ff, 0
    if c.experts is not None:
        chosen, shared = c.experts.num_chosen, c.experts.shared_d_ff or 0
        width, routes = chosen * c.experts.d_ff + shared, c.experts.num
    layer = c.d_model * (heads + 3 * width + routes)
    return c.num_layers * layer, c.d_model * c.vocab_size


def traced_flops(program: Program, sizes: Sizes) -> Flops:
    """FLOPs of the traced program on all devices, before the compiler optimises it.

    Assumes that, apart from attention in blocks, the rollout's only `while` loop is the
    sampler's, over T tokens; that loops and conditions inside it are over blocks of the
    cache; and that the learner's only `while` loop is over optimiser steps.
    """
    verify = program.in_graph()

    def rollout(state, prompts):
        return verdict.in_graph(verify, program.act(state, prompts))

    act, shapes = jax.make_jaxpr(rollout, return_shape=True)(
        program.state, program.batch()
    )
    learn = jax.make_jaxpr(program.learner.learn)(program.state, shapes)
    num, share = blocks_read(sizes)
    once, per_token = count_matmul_flops(act.jaxpr, often=share, turns=num * share)
    outside, per_update = count_matmul_flops(learn.jaxpr)
    num_updates = sizes.num_passes * sizes.num_minibatches
    return Flops(
        prompts=once,
        sampling=per_token * (sizes.max_tokens - 1) * sizes.num_rounds,
        training=outside + per_update * num_updates,
    )


def blocks_read(sizes: Sizes) -> tuple[int, float]:
    """The number of cache blocks, and the mean fraction of them that a token reads."""
    num_keys = max(sizes.max_tokens - 1, 1)
    num = attention_cached.num_blocks(num_keys)
    size = -(-num_keys // num)
    return num, float(np.mean(-(-np.arange(num_keys) // size)) / num)


def count_matmul_flops(
    jaxpr: core.Jaxpr,
    repeat=lambda length: length,
    often: float = 1.0,
    turns: float = 1.0,
    num_blocks: int = 1,
) -> tuple[float, float]:
    """FLOPs of the matrix products outside and inside of `while` loops.

    The loop of attention in blocks is none of those: block i of the queries, of a scan
    over them, reads i + 1 blocks of keys. What a window hides is counted, too.

    Args:
      jaxpr: of any function.
      repeat: length of a `scan` -> how often its body counts. The body of an outermost
        `while` counts once.
      often: fraction of cases in which a `cond` takes its most expensive branch; in the
        others it takes the cheapest.
      turns: how often the body of a `while` inside another `while` counts.
      num_blocks: length of the scan that this is the body of.

    Returns:
      (FLOPs outside of `while` loops, FLOPs of one iteration of each).
    """
    outside = inside = 0.0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in ("dot_general", "ragged_dot_general"):
            outside += _product_flops(eqn)
            continue
        length = repeat(eqn.params["length"]) if name == "scan" else num_blocks
        inner = [
            count_matmul_flops(j, repeat, often, turns, length)
            for j in core.jaxprs_in_params(eqn.params)
        ]
        if not inner:
            continue
        if name == "cond":
            dear, cheap = max(inner, key=sum), min(inner, key=sum)
            mean = often * np.array(dear) + (1 - often) * np.array(cheap)
            inner = [tuple(map(float, mean))]
        out, looped = (sum(part) for part in zip(*inner))
        times = length if name == "scan" else 1
        if name == "while" and attention_blocks.SCOPE in str(
            eqn.source_info.name_stack
        ):
            times = (num_blocks + 1) / 2
        elif name == "while":
            out, looped = 0.0, out + turns * looped
        outside, inside = outside + times * out, inside + times * looped
    return outside, inside


def _product_flops(eqn: core.JaxprEqn) -> float:
    left: Any = eqn.invars[0].aval
    product: Any = eqn.outvars[0].aval
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        groups = 1
    else:  # of experts: each row belongs to one of the groups
        numbers = eqn.params["ragged_dot_dimension_numbers"]
        (contracted, _), _ = numbers.dot_dimension_numbers
        sums_rows = set(numbers.lhs_ragged_dimensions) <= set(contracted)
        groups = product.shape[0] if sums_rows else 1
    depth = int(np.prod([left.shape[i] for i in contracted]))
    return 2.0 * depth * product.size / groups


def memory(program: Program, sizes: Sizes, compiled) -> Memory:
    """The memory of a training step on a device, by purpose.

    The compiler gives the totals; the shapes of the state give the parts.
    """
    state, devices = program.state, program.num_devices
    c, measured = sizes.decoder, compiled_memory(compiled)
    parameters, optimizer = (
        mesh.shapes.device_bytes(part, program.place, program.layout)
        for part in (state.params, state.optimizer)
    )
    rows = sizes.num_prompts * sizes.num_samples // devices
    logits = rows * sizes.max_tokens // sizes.num_pieces * c.vocab_size
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        rest=measured["arguments"] - parameters - optimizer,
        outputs=measured["outputs"] - measured["outputs_in_arguments"],
        temporaries=measured["temporaries"],
        code=measured["code"],
        gradients=parameters,
        cache=sum(cache_bytes(sizes)) // devices,
        logits=4 * max(min(logits, MAX_LOGITS), rows * c.vocab_size),
    )


def compiled_memory(compiled) -> dict[str, int]:
    """Bytes that a program takes on each device, according to the compiler."""
    memory = compiled.memory_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "outputs_in_arguments": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }


def bytes_decoded(program: Program, sizes: Sizes) -> float:
    """Bytes that the sampler's loop reads on a device.

    Each iteration reads the parameters (the device's part along `tensor`), the keys and
    values of the prompts, once per group or slot, and those of the tokens so far.
    """
    axes = {} if program.place is None else program.place.shape
    prompts, own = (size / program.num_devices for size in cache_bytes(sizes))
    parameters = num_bytes((program.state.params, program.state.frozen))
    each = parameters / axes.get(mesh.TENSOR, 1) + prompts
    turns = (sizes.max_tokens - 1) * each + own * sizes.max_tokens / 2
    return sizes.num_rounds * turns


def cache_bytes(sizes: Sizes) -> tuple[int, int]:
    """Bytes of keys and values on all devices: of the prompts, and of completions."""
    c = sizes.decoder
    each = 2 * c.num_layers * c.num_kv_heads * c.head_dim * jnp.dtype(c.dtype).itemsize
    slots = sizes.num_rows < sizes.num_prompts * sizes.num_samples
    prompts = sizes.num_rows if slots else sizes.num_prompts
    own = sizes.num_rows * (sizes.max_tokens - 1)
    return each * prompts * sizes.prompt_tokens, each * own


def matmul_shapes(sizes: Sizes) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The shape (rows, d_model, d_ff) of products in training, and in decoding."""
    rows = sizes.num_prompts * sizes.num_samples
    widths = (sizes.decoder.d_model, sizes.decoder.d_ff)
    training = max(1, rows * sizes.max_tokens // sizes.num_pieces)
    return (training, *widths), (sizes.num_rows, *widths)


def num_elements(tree) -> int:
    """Number of elements in the arrays of a pytree, without PRNG keys."""
    return sum(
        x.size
        for x in jax.tree.leaves(tree)
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    )


def num_bytes(tree) -> int:
    """Bytes of the arrays or ShapeDtypeStructs of a pytree, without PRNG keys."""
    return sum(
        x.size * jnp.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(tree)
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    )
