"""Shapes by name: the parameters that are published, and what is refused."""

import jax
import pytest

from rljax.model import decoder_policy, shapes

# The counts that the hub shows of the published safetensors files; where a file holds
# more than the decoder, what is left of it.
PUBLISHED = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-32b": 32_763_876_352,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    # 27,432,406,640 in all: SigLIP has 416,866,032 (27 layers of 15,239,504, patches,
    # 4,096 positions, a norm), the projector 5376 * 1152 + 1152.
    "gemma-3-27b": 27_432_406_640 - 416_866_032 - 5376 * 1152 - 1152,
}


def count(config):
    made = jax.eval_shape(decoder_policy(config).init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(made))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_known_shape_has_the_parameters_that_are_published(name):
    # A wrong width, a missing bias, norm or head, or a tie changes the number.
    assert count(shapes.named(name)) == PUBLISHED[name]


def test_every_shape_is_counted():
    assert shapes.names() == sorted(PUBLISHED)


def test_details_that_no_count_shows_are_read():
    gemma = shapes.named("gemma-3-27b")
    # Every sixth of 62 layers sees everything: 10 of them.
    assert (gemma.window, gemma.sliding.count(False)) == (1024, 10)
    assert gemma.query_scalar == 168
    assert shapes.named("llama-3.1-8b").rope_scaling.factor == 8
    experts = shapes.named("qwen3-30b-a3b").experts
    assert (experts.num, experts.num_chosen, experts.normalised) == (128, 8, True)


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"llama-3\.1-8b.*qwen3-8b.*got 'qwen9'"):
        shapes.named("qwen9")
