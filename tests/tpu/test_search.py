"""What a search proposes, in which order, and that the compiler has the last word."""

import pytest

from tpu import chips, memory, search


def found(prompts, **changes):
    common = {"model": "qwen2.5-0.5b", "topology": "v5e:2x4", "samples": 8}
    common |= {"prompt_tokens": 512, "max_tokens": 1024}
    return list(search.fitting(**common | changes, prompts=prompts))


def test_what_is_proposed_fits_and_divides():
    proposed = found([128, 64, 32])
    sizes = [row.prompts for row, *_ in proposed]
    assert sizes == sorted(sizes, reverse=True)
    limit = chips.parse("v5e:2x4").chip.hbm_gib * memory.GIB
    for row, needed, _ in proposed:
        assert needed <= limit
        # 2 key/value heads: tensor=4 would have to copy them.
        assert row.mesh in ("fsdp=8", "fsdp=4,tensor=2")
        assert row.prompts // row.microbatches % 4 == 0
    # Of one batch the fastest first: with the same mesh and pieces, where nothing is
    # computed again.
    times = [seconds for row, _, seconds in proposed if row.prompts == 32]
    assert times == sorted(times)
    again = [row for row, *_ in proposed if row.prompts == 32]
    at = {row: i for i, row in enumerate(again)}
    pairs = [
        (at[r], at.get(r._replace(remat="layers"))) for r in at if r.remat != "layers"
    ]
    assert pairs and all(no < yes for no, yes in pairs if yes is not None)


def test_groups_are_cut_where_prompts_cannot_be():
    # 16 prompts over 4 x 2 chips: 4 microbatches leave one prompt for each 4 chips.
    long = {"samples": 16, "prompt_tokens": 2048, "max_tokens": 8192}
    rows = [row for row, *_ in found([16], model="qwen2.5-1.5b", **long)]
    assert {(row.microbatches, row.group_parts) for row in rows} >= {(4, 2)}
    assert all(row.microbatches * row.group_parts >= 8 for row in rows)
    (flag,) = {row.arguments().index("--num-group-parts") for row in rows}
    assert rows[0].arguments()[flag + 1] == str(rows[0].group_parts)


def test_an_update_that_sums_activations_comes_after_one_that_does_not():
    # With 4 prompts in a microbatch each of 8 chips cannot have its own. Over `tensor`
    # each layer then sums the activations of 67,576 tokens eight times.
    long = {"samples": 16, "prompt_tokens": 2048, "max_tokens": 8192}
    rows = [row for row, *_ in found([16], model="qwen2.5-1.5b", **long)]
    cut = [
        (row.microbatches, row.group_parts)
        for row in rows
        if row.mesh == "fsdp=4,tensor=2" and row.remat == "layers"
    ]
    assert cut.index((2, 4)) < cut.index((4, 2))


def test_longer_completions_leave_room_for_less():
    def kinds(rows):
        return {(r.mesh, r.microbatches, r.remat, r.group_parts) for r, *_ in rows}

    long = found([64], max_tokens=8192, prompt_tokens=2048)
    assert kinds(long) < kinds(found([64]))


def test_the_compiler_has_the_last_word(monkeypatch, capsys):
    # 64 prompts do not fit in fewer than 4 pieces, says this compiler, 128 not at all.
    tried = []

    def compile_row(row, *more):
        tried.append(row)
        return {"fits": row.prompts < 128 and row.prompts // row.microbatches <= 16}

    monkeypatch.setattr(search, "compiled", compile_row)
    taken = search.search(search.Options())
    assert (taken.prompts, taken.microbatches) == (64, 4)
    assert tried[0].prompts == 128
    assert "--num-prompts 64" in capsys.readouterr().out


def test_nothing_that_fits_is_an_error_that_says_what_to_do():
    with pytest.raises(
        ValueError, match=r"qwen2\.5-32b must fit on v5e:2x4.*larger slice"
    ):
        search.search(search.Options(model="qwen2.5-32b"))


def test_a_row_is_known_by_its_name():
    row = search.Row("qwen3-8b", "v5p:2x2x4", "fsdp=16", 16, 16, 2048, 8192, 1)
    assert search.Row.named(row.name) == row
