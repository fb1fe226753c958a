"""A run whose folder and checkpoints lie in a bucket: Google's API, emulated.

etils (by gcsfs) and orbax (by tensorstore) ask for it over HTTP, as they would Google.
Needs `pip install gcp-storage-emulator gcsfs`.
"""

import urllib.parse
import urllib.request

import pytest
import several

from rljax.run import record

pytestmark = pytest.mark.slow
RUN = "gs://bucket/runs/one"


@pytest.fixture
def storage():
    """The address of a server that has an empty bucket."""
    pytest.importorskip("gcsfs")
    server = pytest.importorskip("gcp_storage_emulator.server")
    port = several.free_port()
    made = server.create_server("localhost", port, True, default_bucket="bucket")
    made.start()
    yield f"http://localhost:{port}"
    made.stop()


def train(run_dir, steps, storage, *flags):
    """Two processes train to this step; what is left is told by the bucket alone."""
    words = f"--quick --num-test 0 --checkpoint-every 1 --schedule-steps 4 {steps}"
    arguments = ["-m", "experiments.train", *words.split(), "--run-dir", str(run_dir)]
    own = {"STORAGE_EMULATOR_HOST": storage, "TENSORSTORE_GCS_HTTP_URL": storage}
    ended = several.run([*arguments, *flags], 2, devices=1, **own)
    assert {one.code for one in ended} == {0}, ended
    return ended


def lines(path):
    times = ("seconds", "time/tokens_per_second")
    return [
        {name: value for name, value in r.items() if name not in times}
        for r in record.read(path)
        if r["kind"] == "step"
    ]


def read(storage, name) -> bytes:
    quoted = urllib.parse.quote(f"runs/one/{name}", safe="")
    url = f"{storage}/storage/v1/b/bucket/o/{quoted}?alt=media"
    with urllib.request.urlopen(url) as answer:
        return answer.read()


def test_a_run_in_a_bucket_goes_on_from_the_checkpoints_there(storage, tmp_path):
    train(tmp_path / "whole", "--num-steps 4", storage)
    train(RUN, "--num-steps 2", storage)
    ended = train(RUN, "--num-steps 4", storage, "--resume")
    assert "00000002" in ended[0].text  # where it went on
    (tmp_path / "metrics.jsonl").write_bytes(read(storage, record.FILE))
    assert lines(tmp_path / "metrics.jsonl") == lines(tmp_path / "whole" / record.FILE)
    saved = "policy/model.safetensors"
    assert read(storage, saved) == (tmp_path / "whole" / saved).read_bytes()
