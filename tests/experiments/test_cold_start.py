"""How many programs a run of a folder compiles, from its first line to its report."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from hugging_face_folders import TRAINABLE, small_params

from rljax.data import tokenizer
from rljax.model import hugging_face

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = """
import json, sys
import jax
names = []
def note(event, seconds, **facts):
    if "backend_compile" in event:
        names.append(str(facts.get("fun_name")))
jax.monitoring.register_event_duration_secs_listener(note)
from experiments import train
train.main()
print(json.dumps(names))
"""


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--lora-rank", "2")], ids=["whole", "adapters"])
def test_a_cold_start_compiles_at_most_six_programs(tmp_path, more):
    # Tensors cast one shape at a time, or eager operations on the host's side, would
    # each be a program of their own: there were more than twenty.
    words = tokenizer.character_tokenizer("0123456789+=")
    params = small_params(TRAINABLE)
    hugging_face.save(tmp_path / "model", TRAINABLE, params, tokenizer=words)
    rows = [{"question": f"{i}+{i}", "answer": str(2 * i)} for i in range(30)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = {
        "--model": tmp_path / "model",
        "--data": tmp_path / "x.jsonl",
        "--run-dir": tmp_path / "run",
        **{"--num-prompts": 4, "--num-samples": 4, "--max-tokens": 4},
        **{"--max-prompt-tokens": 8, "--num-steps": 4, "--evaluate-every": 2},
        **{"--checkpoint-every": 2, "--num-validation": 4, "--num-test": 8},
    }
    given = [*(str(x) for pair in flags.items() for x in pair), *more]
    # A process of its own has one device, as most users'.
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *given, "--no-compilation-cache"],
        **{"cwd": ROOT, "env": env, "capture_output": True, "text": True},
    )
    assert done.returncode == 0, done.stderr
    names = json.loads(done.stdout.splitlines()[-1])
    assert len(names) <= 6, names
    assert (tmp_path / "run" / "policy" / "config.json").is_file()
