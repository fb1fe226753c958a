"""The atlas: its page from its file, rows in order, and what it says it did not do."""

import json

from tpu import atlas, chips, page, search

ROW = search.Row("qwen2.5-0.5b", "v5e:2x4", "fsdp=8", 16, 8, 512, 1024, 2)


def report(**changes):
    seconds = {"prefill": 0.5, "decode": 0.4, "update": 1.0}
    common = {
        "model": "qwen2.5-0.5b",
        "topology": "v5e:2x4",
        "mesh": "fsdp=8",
        "prompts_per_step": 16,
        "num_samples": 8,
        "prompt_tokens": 512,
        "max_tokens": 1024,
        "num_parameters": 494_032_768,
        "num_microbatches": 2,
        "num_group_parts": 4,
        "steps_per_dispatch": 1,
        "hbm_per_device": 15.75 * 2**30,
        "fits": True,
        "memory_per_device": {
            "arguments": 2**30,
            "temporaries": 4 * 2**30,
            "code": 2**28,
            "peak": 4 * 2**30,
        },
        "memory_by_arithmetic": {
            **dict.fromkeys(page._ARITHMETIC, 2**29),
            "peak": 3 * 2**30,
        },
        "roofline": {
            "expected": {
                "seconds": seconds | {"collectives: update": 0.1},
                "step_seconds": 2.0,
                "tokens_per_second": 65536.0,
            },
            "at_peak": {"step_seconds": 0.8},
        },
        "collectives": {"all-gather": {"count": 7, "bytes": 3 * 10**9}},
        "moved_per_step": {
            "update": {"bytes": 3e9, "times": 7.0},
            "decode": {"bytes": 1e9, "times": 2.0},
        },
        "received_by_arithmetic": 3.5e9,
        "compile_seconds": 100.4,
    }
    return common | changes


def test_a_row_says_what_was_compiled_and_how_far_arithmetic_was_off():
    text = page.text([report()], [], [])
    step, memory, seconds, moved = (
        line for line in text.splitlines() if line.startswith("| qwen2.5-0.5b,")
    )
    name = "| qwen2.5-0.5b, v5e:2x4, fsdp=8, 16 x 8 x (512 + 1024), groups in 4"
    assert step == f"{name} | 2 | 4.0 of 15.75 | 2.00 | 65,536 | 100 |"
    # 3 of 4 GiB: a quarter short. Of it over arithmetic it would be a third.
    assert memory.startswith(f"{name} | 1.00 | 4.00 | 0.25 | 4.00 | 3.00 (-25%) | 0.50")
    assert seconds == f"{name} | 0.50 | 0.40 | 1.00 | 0.10 | 0.10 | 0.80 |"
    assert moved == f"{name} | 7: 3.0 |  |  |  |  | 4.0 | 3.5 |"


def test_a_row_that_does_not_fit_says_so():
    above = report(fits=False)
    assert "| 4.0 of 15.75: NO |" in page.text([above], [], [])
    given_up = report(fits=False)
    del given_up["memory_per_device"]
    assert "| more than 15.75: NO |" in page.text([given_up], [], [])


def test_what_was_not_compiled_is_named_and_not_guessed():
    text = page.text([], [ROW], [("qwen2.5-32b", "v5e:2x4", (16, 2048, 8192))])
    _, rest = text.split("## Not compiled")
    assert "qwen2.5-0.5b, v5e:2x4, fsdp=8, 16 x 8 x (512 + 1024), 2 micro" in rest
    assert "do not fit" in rest.split("- qwen2.5-32b, v5e:2x4: 16 x (2048 + 8192)")[0]


def test_rows_that_are_there_are_kept_and_missing_ones_compiled(tmp_path, monkeypatch):
    done = []

    def compile_row(row, **_):
        done.append(row.name)
        if len(done) == 3:
            raise ValueError("gave up")
        return report(model=row.model, topology=row.topology)

    monkeypatch.setattr(atlas, "DOCS", tmp_path)
    monkeypatch.setattr(atlas, "compiled", compile_row)
    names = [row.name for row in atlas.rows()]
    atlas.main(["--rows", "1"])
    atlas.main(["--rows", "1"])
    assert done == names[:2]
    try:
        atlas.main(["--rows", "2"])  # the first of them fails, the second is written
    except SystemExit as ended:
        assert ended.code == 1
    atlas.main(["--rows", "1", "--again"])
    assert done == [*names[:4], names[0]]
    kept = list(json.loads((tmp_path / "atlas.json").read_text()))
    assert kept == [names[0], names[1], names[3]]
    text = (tmp_path / "atlas.md").read_text()
    assert text.count("65,536") == 3


def test_a_row_that_the_compiler_refuses_gives_way_to_a_smaller_one(
    tmp_path, monkeypatch
):
    done = []

    def compile_row(row, **_):
        done.append(row)
        return report(model=row.model, topology=row.topology, fits=len(done) > 1)

    monkeypatch.setattr(atlas, "DOCS", tmp_path)
    monkeypatch.setattr(atlas, "compiled", compile_row)
    cell = "qwen2.5-32b v5p:2x2x4"
    long = next(r for r in atlas.rows() if cell in r.name and r.max_tokens == 8192)
    atlas.main(["--only", f"{cell} {long.mesh} 16 16"])
    refused, smaller = done
    assert refused == long and smaller.arithmetic().peak < long.arithmetic().peak
    assert smaller[:7] == long[:7]
    names = set(json.loads((tmp_path / "atlas.json").read_text()))
    assert names == {refused.name, smaller.name}
    assert not {long, smaller} & {*atlas.rows(frozenset([long.name, smaller.name]))}


def test_every_step_of_the_atlas_fits_by_arithmetic_or_is_named_as_too_large():
    found = atlas.rows()
    assert len({row.name for row in found}) == len(found)
    too_large = [of for of in atlas.grid() if atlas.planned(*of) is None]
    assert len(found) + len(too_large) == len(atlas.grid()) == 4 * 10 * 2
    # 32B with two moments in float32 is 393 GB: 24.6 GB on each of 16 chips.
    assert ("qwen2.5-32b", "v5e:4x4", (8, 512, 1024)) in too_large
    for row in found:
        split = chips.parse(row.topology).num_chips // tensor_of(row)
        assert row.prompts // row.microbatches % split == 0, row
    # The case of the plans: whole groups, and heads apart while they are decoded, when
    # all weights are read for each token.
    (long,) = (
        row
        for row in found
        if (row.model, row.topology, row.max_tokens) == ("qwen3-8b", "v5p:2x2x4", 8192)
    )
    assert (long.mesh, long.prompts, long.samples) == ("fsdp=2,tensor=8", 16, 16)
    assert long.sizes().num_pieces == 1


def tensor_of(row):
    axes = dict(part.split("=") for part in row.mesh.split(","))
    return int(axes.get("tensor", 1))
