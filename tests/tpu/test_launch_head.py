"""What the head of a launch predicts, and what is refused before a file is written."""

import json

import pytest

from tpu import launch

REPORT = {
    "experiment": "train",
    "model": "qwen2.5-0.5b",
    "topology": "v5e:2x4",
    "mesh": "fsdp=8",
    "fits": True,
    "prompts_per_step": 16,
    "num_samples": 8,
    "max_tokens": 1024,
    "memory_per_device": {"peak": 9 * 2**30},
    "roofline": {"expected": {"step_seconds": 36.0}, "at_peak": {"step_seconds": 12.0}},
}


def launched(tmp_path, report=REPORT, flags=(), **changes):
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report))
    common = {"topology": "v5e:2x4", "via": "queued", "name": "first", "report": file}
    return launch.launch(launch.Options(**common | changes), list(flags))


def test_the_head_says_memory_step_time_and_cost(tmp_path):
    # 8 chips at $1.20 are $9.60 an hour; 1,000 steps of 36 s are 10 hours.
    text = launched(tmp_path)["first.sh"]
    head = [line for line in text.splitlines() if line.startswith("# ")]
    assert head[0].startswith("# qwen2.5-0.5b on v5e:2x4 (8 chips, on 1 host(s)), mesh")
    assert head[1] == "# Memory of a chip: 9.0 of 15.75 GiB (the compiler's peak)"
    assert head[2].startswith("# A step of 16 x 8 samples x 1024 tokens: 36 s expected")
    assert head[3].startswith("# Cost: $9.60 per hour, $96.00 per 1,000 steps")


def test_without_a_price_it_says_so(tmp_path):
    gpus = REPORT | {"topology": "h100:8"}
    text = launched(tmp_path, gpus, topology="h100:8", via="slurm")["first.sbatch"]
    assert "# Cost: no list price is known" in text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"topology": "v5e:3x3"}, r"--topology must be one of v5e:1x1.*got 'v5e:3x3'"),
        ({"topology": "v6e:2x2"}, r"--report must be of --topology v6e:2x2.*v5e:2x4"),
        ({"via": "slurm"}, r"a --topology of GPUs, got v5e:2x4; take --via queued"),
        (
            {"via": "skypilot", "runs": "/scratch"},
            r"--runs gs://BUCKET, which it mounts, got /scratch",
        ),
        ({"name": "First_"}, r"--name must begin with a letter.*got 'First_'"),
    ],
)
def test_what_cannot_be_launched_is_refused(tmp_path, changes, told):
    with pytest.raises(ValueError, match=told):
        launched(tmp_path, **changes)


def test_what_does_not_fit_is_refused_with_what_would(tmp_path):
    told = "it fits with --mesh fsdp over one of v5p:2x2x4"
    with pytest.raises(ValueError, match=told):
        launched(tmp_path, REPORT | {"fits": False, "refusal": told})


def test_gpus_are_not_launched_as_a_slice(tmp_path):
    gpus = REPORT | {"topology": "h100:8"}
    with pytest.raises(ValueError, match=r"TPUs, got h100:8; take --via slurm or sky"):
        launched(tmp_path, gpus, topology="h100:8")


def test_a_plan_of_a_shape_needs_no_files():
    # Model and data lie on the machine of the run, not here.
    flags = ["--model", "/there", "--data=/there", "--num-prompts", "16"]
    assert launch._planned(flags) == ["--num-prompts", "16"]
