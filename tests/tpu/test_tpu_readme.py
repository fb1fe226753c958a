"""The pages' own commands: what they say to type is what the programs take."""

import json
import pathlib
import shlex
import subprocess
import sys

import pytest

from tpu import launch, search

PAGE = pathlib.Path(launch.__file__).parent / "README.md"


def commands(module):
    """The words of the page's commands of a module, those of one line each."""
    blocks = PAGE.read_text().split("```sh\n")[1:]
    lines = "".join(block.split("```")[0] for block in blocks).replace("\\\n", "")
    start = f"python -m {module} "
    return [
        shlex.split(line.removeprefix(start).split("&&")[0], comments=True)
        for line in lines.splitlines()
        if line.startswith(start)
    ]


def test_the_page_has_a_command_for_a_slice_a_machine_of_gpus_and_a_cluster():
    assert {words[3] for words in commands("tpu.launch")} == {"queued", "slurm"}
    topologies = {
        words[words.index("--topology") + 1] for words in commands("tpu.compile")
    }
    assert topologies == {"v5e:2x4", "v5p:2x2x4", "h100:1"}


@pytest.mark.slow
@pytest.mark.parametrize("words", commands("tpu.launch"), ids=lambda words: words[3])
def test_its_launches_write_scripts_that_bash_reads(words, tmp_path):
    launch.main([*words, "--out", str(tmp_path)])
    script = tmp_path / f"{words[words.index('--name') + 1]}.sh"
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("words", commands("tpu.compile"), ids=lambda words: words[1])
def test_its_compilations_are_of_experiments_that_can_be_made(words, tmp_path):
    file = tmp_path / "report.json"
    words = [word for word in words if word not in ("--json", "report.json")]
    # In a process of its own, which begins with as many devices as the mesh has.
    command = [sys.executable, "-m", "tpu.compile", *words, "--arithmetic"]
    subprocess.run([*command, "--json", str(file)], check=True, timeout=600)
    assert json.loads(file.read_text())


def test_its_search_is_one_that_finds_something():
    text = PAGE.read_text()
    assert "python -m tpu.search --model qwen3-8b --topology v5p:2x2x4" in text
    found = search.search(
        search.Options(model="qwen3-8b", topology="v5p:2x2x4", compile=False)
    )
    assert found.prompts >= 16
