"""The atlas: its page from its file, rows in order, and what a search tries first."""

import json

from tpu import atlas


def report(**changes):
    common = {
        "model": "qwen2.5-0.5b",
        "topology": "v5e:2x4",
        "mesh": "fsdp=8",
        "prompts_per_step": 16,
        "num_samples": 8,
        "prompt_tokens": 512,
        "max_tokens": 1024,
        "num_microbatches": 2,
        "hbm_per_device": 15.75 * 2**30,
        "fits": True,
        "memory_per_device": {"peak": 4 * 2**30},
        "memory_by_arithmetic": {"peak": 3 * 2**30},
        "roofline": {"expected": {"step_seconds": 2.0, "tokens_per_second": 65536.0}},
        "link_bytes_per_step": {"update": 3e9, "decode": 1e9},
        "compile_seconds": 100.4,
    }
    return common | changes


def test_a_row_says_what_was_compiled():
    assert atlas.line(report()) == (
        "| qwen2.5-0.5b | v5e:2x4, fsdp=8 | 16 x 8 x (512 + 1024) | 2 | 4.0 of 15.75"
        " | 3.0 | 2.00 | 65,536 | 4.0 | 100 |\n"
    )
    assert "of 15.75: NO |" in atlas.line(report(fits=False))


def test_rows_that_are_there_are_kept_and_missing_ones_compiled(tmp_path, monkeypatch):
    compiled = []

    def compile_row(row):
        compiled.append(row.name)
        return report(model=row.model, topology=row.topology)

    monkeypatch.setattr(atlas, "DOCS", tmp_path)
    monkeypatch.setattr(atlas, "report_on", compile_row)
    names = [row.name for row in atlas.ROWS]
    atlas.main(["--rows", "1"])
    atlas.main(["--rows", "2"])
    assert compiled == names[:3]
    atlas.main(["--rows", "1", "--again"])
    assert compiled == [*names[:3], names[0]]
    assert list(json.loads((tmp_path / "atlas.json").read_text())) == names[:3]
    page = (tmp_path / "atlas.md").read_text().splitlines()
    assert [line.split(" | ")[1] for line in page[-3:]] == [
        "v5e:2x4, fsdp=8",
        "v5e:2x4, fsdp=8",
        "v5e:4x4, fsdp=8",
    ]


def test_every_row_has_a_name_of_its_own_and_divides_its_prompts():
    assert len({row.name for row in atlas.ROWS}) == len(atlas.ROWS)
    for row in atlas.ROWS:
        chips = atlas.chips.parse(row.topology).num_chips
        axes = dict(part.split("=") for part in row.mesh.split(","))
        split = chips // int(axes.get("tensor", 1))
        assert row.prompts // row.microbatches % split == 0, row


def test_a_search_takes_the_largest_batch_that_fits(monkeypatch, capsys):
    # 64 prompts do not fit in fewer than 4 pieces, 128 not at all.
    tried = []

    def compile_row(row, *more):
        tried.append(row)
        return {"fits": row.prompts < 128 and row.prompts // row.microbatches <= 16}

    monkeypatch.setattr(atlas, "report_on", compile_row)
    found = atlas.search(atlas.Options(search=True, topology="v5e:2x4"))
    assert (found.prompts, found.microbatches, found.mesh) == (64, 4, "fsdp=8")
    assert tried[0].prompts == 128
    assert "--num-prompts 64" in capsys.readouterr().out
