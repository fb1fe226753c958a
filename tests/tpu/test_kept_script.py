"""tpu/kept.sh: a run whose folder is kept in a bucket; a folder stands for it here."""

import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

import tpu

GCLOUD = """#!/bin/bash
# storage ls URL | storage rsync [FLAGS] FROM TO
place() { echo "${1/gs:\\/\\//$BUCKETS/}"; }
case "$2" in
ls) [ -e "$(place "$3")" ] ;;
rsync)
  from=$(place "${@: -2:1}") to=$(place "${@: -1}")
  mkdir -p "$to"; cp -r "$from/." "$to" ;;
esac
"""
# Adds a step to the run, then waits if told to; a signal is answered as a run does.
RUN = """#!/bin/bash
while [ "$1" != --run-dir ]; do shift; done
mkdir -p "$2"; echo {} > "$2/config.json"
trap 'echo saved >> "$2/steps"; exit 143' TERM
echo step >> "$2/steps"
[ -z "$WAIT" ] || { touch "$2/waiting"; sleep 30 & wait $!; }
exit "${STATUS:-0}"
"""


@pytest.fixture
def start(tmp_path):
    for name, text in {"bin/gcloud": GCLOUD, "tpu/run.sh": RUN}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    shutil.copy(pathlib.Path(tpu.__path__[0]) / "kept.sh", tmp_path / "tpu")
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def begin(folder, **environment):
        command = [tmp_path / "tpu" / "kept.sh", "gs://bucket/one", folder, "module"]
        env = {**os.environ, "PATH": path, "BUCKETS": str(tmp_path), **environment}
        return subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)

    return begin


def test_a_run_goes_on_from_the_bucket_on_a_new_machine(tmp_path, start):
    # Without the copy at the end, or that at the start, there would be one step.
    assert start("first").wait(30) == 0
    assert start("second").wait(30) == 0
    assert (tmp_path / "bucket/one/steps").read_text() == "step\nstep\n"


def test_a_failure_is_the_scripts_own_and_what_it_left_is_kept(tmp_path, start):
    assert start("first", STATUS="3").wait(30) == 3
    assert (tmp_path / "bucket/one/steps").read_text() == "step\n"


def test_a_signal_reaches_the_run_which_saves_before_the_last_copy(tmp_path, start):
    process = start("first", WAIT="1")
    while not (tmp_path / "first/waiting").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert (tmp_path / "bucket/one/steps").read_text() == "step\nsaved\n"
