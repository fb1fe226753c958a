"""Which mesh a run gets, and what is said of one that does not fit."""

import types

import jax
import pytest

from rljax import mesh

LIMITS = mesh.Limits(prompts=12, heads=2, experts=6)


def sizes(made):
    return {} if made is None else dict(made.shape)


def test_a_mesh_is_written_as_axes_with_sizes():
    assert mesh.parse("data=2, fsdp=4") == {"data": 2, "fsdp": 4}


@pytest.mark.parametrize(
    "text", ["", "data", "data=0", "data=2,data=4", "rows=2", "fsdp=-1", "tensor=²"]
)
def test_what_is_no_mesh_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"data=2,fsdp=4,tensor=2.*correct"):
        mesh.parse(text)


def test_data_takes_the_devices_that_are_not_named():
    assert sizes(mesh.make()) == {"data": 8}
    assert sizes(mesh.make(fsdp=2, tensor=2)) == {"data": 2, "fsdp": 2, "tensor": 2}


def test_fewer_devices_than_there_are_make_a_mesh_of_the_first():
    made = mesh.make(data=2, tensor=2)
    assert list(made.devices.flat) == jax.devices()[:4]


def test_by_default_as_many_devices_as_divide_the_prompts():
    # 8 do not divide 12, and 6 devices of 8 are no part of a torus.
    assert sizes(mesh.choose(LIMITS)) == {"data": 4}
    assert mesh.choose(mesh.Limits(prompts=7)) is None


def test_by_default_every_process_has_a_part_or_it_says_how_many_prompts_would_do():
    # 4 of these 8 devices would leave the second process without any.
    hosts = [types.SimpleNamespace(process_index=i // 4) for i in range(8)]
    with pytest.raises(ValueError, match=r"8 devices.*2 processes.*got 12; take 16"):
        mesh.choose(LIMITS, devices=hosts)


def test_large_parameters_are_split_by_default():
    small, large = (
        sizes(mesh.choose(mesh.Limits(prompts=8), num_bytes=n)) for n in (2**20, 2**34)
    )
    assert small == {"data": 8}
    assert large == {"data": 1, "fsdp": 8}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"fsdp": 3}, r"divide the 8 devices, got fsdp=3, of 3.*take fsdp=4\."),
        ({"fsdp": 16}, r"divide the 8 devices, got fsdp=16, of 16.*take fsdp=4\."),
        ({"fsdp": 8}, r"12 prompts .* multiple of 8.*got fsdp=8; take fsdp=4\."),
        ({"tensor": 4}, r"2 key/value heads.*tensor=4.*take data=4,tensor=2\."),
        ({"expert": 4}, r"6 experts.*expert=4, got data=2,expert=4.*=2,expert=2\."),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_the_nearest_that_does(asked, message):
    with pytest.raises(ValueError, match=message):
        mesh.choose(LIMITS, asked)


def test_all_that_does_not_divide_is_told_at_once():
    with pytest.raises(ValueError, match=r"3 prompts.*; 3 key/value heads"):
        mesh.choose(mesh.Limits(prompts=3, heads=3), {"data": 4, "tensor": 2})


def test_an_unknown_axis_is_refused():
    with pytest.raises(ValueError, match="got rows"):
        mesh.make(rows=8)


def test_a_mesh_is_told_as_the_flag_would_say_it():
    assert mesh.text(mesh.make(fsdp=2)) == "data=4,fsdp=2"
    assert mesh.text(None) == "data=1"


@pytest.mark.parametrize(
    "ask", [lambda: mesh.parse("data=2,sequence=4"), lambda: mesh.make(sequence=4)]
)
def test_tokens_inside_attention_are_not_split_and_it_says_what_is(ask):
    with pytest.raises(
        ValueError, match=r"sequence.*all tokens of a sample.*Rules\(rows="
    ):
        ask()
