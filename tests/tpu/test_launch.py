"""Launching: what the generated files would run, read by those who would run it.

Each script runs with stand-ins for gcloud and its like, which write down what they were
given. That is checked against the flags that the tools have, and by the tools
themselves where they are installed.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sysconfig

import pytest
import yaml

from tpu import chips, launch
from tpu.target.job import Job

TOOLS = ("gcloud", "xpk", "sky", "kubectl", "docker", "git", "sbatch", "scancel")
TOOLS += ("make", "tail", "sleep")
PLACES = {
    "queued": ("v5e:2x4", "v5p:2x2x4"),
    "tpu-vm": ("v6e:2x2", "v5e:4x4"),
    "xpk": ("v5e:2x4", "v5p:2x2x4"),
    "jobset": ("v5e:2x4", "v6e:4x4"),
    "skypilot": ("v5e:2x4", "h100:8"),
    "slurm": ("h100:1", "h100:8"),
}
CASES = [(via, place) for via, places in PLACES.items() for place in places]
# A space, a quote and a dollar must come through ssh and a shell as they are.
FLAGS = ("--algorithm", "fade", "--template", "It's {question} for $5:")

# Flags of gcloud's commands, from its reference (gcloud 528; `gcloud ... --help`).
SSH = {"--worker", "--command"}
PLACE = {"--project", "--zone"}
REGION = {"--project", "--location"}
VM, QUEUED = "compute tpus tpu-vm", "compute tpus queued-resources"
CLUSTERS, POOLS = "container clusters", "container node-pools"
GCLOUD = {
    f"{QUEUED} create": PLACE
    | {"--node-id", "--accelerator-type", "--runtime-version", "--scopes", "--spot"},
    f"{QUEUED} describe": PLACE | {"--format"},
    f"{QUEUED} delete": PLACE | {"--force", "--quiet"},
    f"{VM} create": PLACE | {"--accelerator-type", "--version", "--scopes", "--spot"},
    f"{VM} ssh": PLACE | SSH,
    f"{VM} scp": PLACE | {"--worker"},
    f"{VM} delete": PLACE | {"--quiet"},
    f"{CLUSTERS} create": REGION,
    f"{CLUSTERS} get-credentials": REGION,
    f"{CLUSTERS} delete": REGION | {"--quiet"},
    f"{POOLS} create": REGION
    | {"--cluster", "--node-locations", "--machine-type", "--num-nodes"}
    | {"--tpu-topology", "--scopes", "--spot"},
}


def job(topology, via, **changes):
    common = {
        "place": chips.parse(topology),
        "name": "first-run",
        "module": "experiments.train",
        "flags": FLAGS,
        "head": ("one line", "another"),
        "project": "my-project",
        "zone": "us-west4-a",
        "runs": "/scratch/me" if via == "slurm" else "gs://bucket",
        "image": "example.com/image:1",
        "spot": True,
    }
    return Job(**common | changes)


def written(tmp_path, via, topology, **changes):
    files = launch.TARGETS[via](job(topology, via, **changes))
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return files


def commands(tmp_path, via, topology, **changes):
    """The arguments that each tool gets when all steps of the script are run."""
    files = written(tmp_path, via, topology, **changes)
    tools, log = tmp_path / "bin", tmp_path / "log"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).write_text(
            "#!/usr/bin/env bash\n"
            f"{{ printf '%s\\0' {tool} \"$@\"; printf '\\0'; }} >> {log}\n"
            'if [ "$3" = queued-resources ]; then echo ACTIVE; fi\n'
        )
        (tools / tool).chmod(0o755)
    script = tmp_path / "first-run.sh"
    script.chmod(0o755)
    usage = next(x for x in files["first-run.sh"].splitlines() if "Usage" in x)
    steps = usage.split("$0 ")[1].split(" | ")
    if via == "slurm":
        steps.remove("setup")  # installs with .venv/bin/python, which is no tool
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    for step in steps:
        env = {**os.environ, "PATH": path}
        subprocess.run([script, step], check=True, env=env, timeout=60)
    lines = log.read_text().removesuffix("\0\0").split("\0\0")
    return [line.split("\0") for line in lines]


@pytest.mark.parametrize(("via", "topology"), CASES)
def test_every_step_runs_and_gcloud_has_the_flags_it_is_given(tmp_path, via, topology):
    found = commands(tmp_path, via, topology)
    for tool, *words in found:
        if tool == "gcloud":
            name = next(n for n in GCLOUD if " ".join(words).startswith(n))
            flags = {w.partition("=")[0] for w in words if w.startswith("--")}
            assert flags <= GCLOUD[name], name
    # What begins can be ended.
    begun = {"create", "launch", "sbatch"}
    assert any(begun & set(words) for words in found)
    assert any({"delete", "cancel", "scancel"} & set(words) for words in found)


@pytest.mark.parametrize("topology", ["v5e:2x4", "v5p:2x2x4"])
def test_the_experiments_flags_come_through_ssh_and_a_shell(tmp_path, topology):
    # One layer of quotes less and the apostrophe ends the command, or $5 becomes "".
    found = commands(tmp_path, "queued", topology)
    begin = next(words[-1] for words in found if "nohup" in words[-1])
    remote = begin.removeprefix("--command=").partition(" < /dev/null")[0]
    remote = remote.removeprefix("cd rljax && nohup ")
    (tmp_path / "tpu").mkdir()
    run = tmp_path / "tpu" / "run.sh"
    run.write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"\n")
    run.chmod(0o755)
    out = subprocess.run(
        ["bash", "-c", remote], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    got = out.stdout.splitlines()
    at = got.index("experiments.train") + 1
    assert tuple(got[at : at + len(FLAGS)]) == FLAGS
    assert got[-3:] == ["--run-dir", "gs://bucket/first-run", "--resume"]


@pytest.mark.parametrize(("via", "topology"), CASES)
def test_bash_and_shellcheck_read_every_script(tmp_path, via, topology):
    files = written(tmp_path, via, topology)
    scripts = [tmp_path / n for n in files if not n.endswith(".yaml")]
    scripts += sorted(pathlib.Path(launch.__file__).parent.glob("*.sh"))
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
    shellcheck = pathlib.Path(sysconfig.get_path("scripts"), "shellcheck")
    # Below a warning it doubts that quotes within quotes and a $5 in them are meant.
    command = [shellcheck, "--severity=warning", *scripts]
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout


@pytest.mark.slow
def test_gclouds_own_parser_takes_every_command(tmp_path):
    if (gcloud := shutil.which("gcloud")) is None:
        pytest.skip("gcloud is not installed; its flags are checked by the table")
    lines = set()
    for via in ("queued", "tpu-vm", "jobset"):
        (tmp_path / via).mkdir()
        for tool, *words in commands(tmp_path / via, via, PLACES[via][1]):
            if tool == "gcloud":
                # What runs elsewhere is text to it, and quotes are not its matter.
                words = [w if "--command" not in w else "--command=true" for w in words]
                lines.add(" ".join(["gcloud", *words]))
    assert len(lines) > 10
    for line in sorted(lines):
        out = subprocess.run(
            [gcloud, "meta", "lint-gcloud-commands", f"--command-string={line}"],
            env={**os.environ, "CLOUDSDK_CONFIG": str(tmp_path / "config")},
            capture_output=True,
            text=True,
            timeout=300,
        )
        (answer,) = json.loads(out.stdout)
        assert answer["success"], (line, answer["error_message"])


@pytest.mark.slow
def test_xpks_dry_run_takes_its_commands(tmp_path):
    if (xpk := shutil.which("xpk")) is None:
        pytest.skip("xpk is not installed (pip install xpk)")
    found = commands(tmp_path, "xpk", "v5e:2x4", image="gcr.io/p/image:1")
    runs = {tuple(w) for w in found if w[:3] == ["xpk", "workload", "create"]}
    for run in runs:
        out = subprocess.run(
            [xpk, *run[1:], "--dry-run"],
            env={**os.environ, "CLOUDSDK_CONFIG": str(tmp_path / "config")},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert out.returncode == 0, out.stdout[-2000:]
        assert "kubectl apply" in out.stdout


def _object(required, **properties):
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


def _array(items):
    return {"type": "array", "minItems": 1, "items": items}


TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}
# What of the CRD of JobSet this project writes, nothing else being allowed; from
# config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml of kubernetes-sigs/jobset.
CONTAINER = _object(
    ["name"],
    name=TEXT,
    image=TEXT,
    command=_array(TEXT),
    args=_array(TEXT),
    resources=_object([], limits={"type": "object"}),
)
POD = _object(
    ["containers"],
    restartPolicy={"enum": ["Never", "OnFailure"]},
    terminationGracePeriodSeconds=COUNT,
    nodeSelector=TEXTS,
    containers=_array(CONTAINER),
)
JOB = _object(
    ["template"],
    parallelism=COUNT,
    completions=COUNT,
    backoffLimit=COUNT,
    template=_object([], spec=POD),
)
REPLICATED = _object(
    ["name", "template"], name=TEXT, replicas=COUNT, template=_object([], spec=JOB)
)
JOBSET = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=_object(["name"], name=TEXT, annotations=TEXTS),
    spec=_object(
        ["replicatedJobs"],
        failurePolicy=_object([], maxRestarts=COUNT),
        replicatedJobs=_array(REPLICATED),
    ),
)


@pytest.mark.parametrize("topology", PLACES["jobset"])
def test_the_jobset_has_the_schema_of_its_kind(tmp_path, topology):
    jsonschema = pytest.importorskip("jsonschema")
    files = written(tmp_path, "jobset", topology)
    manifest = yaml.safe_load(files["first-run.yaml"])
    jsonschema.validate(manifest, JOBSET)
    pods = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = pods["template"]["spec"]["containers"]
    # A pod per host, each with all chips of it: else some chips would idle.
    limit = container["resources"]["limits"]["google.com/tpu"]
    assert limit * pods["parallelism"] == chips.parse(topology).num_chips
    # YAML left the shell's quotes as they were: the shell gives the flags back.
    show = f"show() {{ printf '%s\\n' \"$@\"; }}; {container['args'][0]}"
    show = show.replace("tpu/run.sh", "show")
    out = subprocess.run(["bash", "-c", show], capture_output=True, text=True)
    assert tuple(out.stdout.splitlines()[1 : 1 + len(FLAGS)]) == FLAGS


# Of SkyPilot's specification of YAML files what this project writes.
MOUNT = _object(
    ["source"], source=TEXT, mode={"enum": ["MOUNT", "COPY", "MOUNT_CACHED"]}
)
SKY = _object(
    ["run"],
    name=TEXT,
    workdir=TEXT,
    setup=TEXT,
    run=TEXT,
    file_mounts={"type": "object", "additionalProperties": MOUNT},
    resources=_object(
        [],
        accelerators=TEXT,
        accelerator_args=_object([], runtime_version=TEXT),
        use_spot={"type": "boolean"},
        job_recovery=_object([], max_restarts_on_errors=COUNT),
    ),
)


@pytest.mark.parametrize("topology", PLACES["skypilot"])
def test_the_task_of_skypilot_has_its_schema(tmp_path, topology):
    jsonschema = pytest.importorskip("jsonschema")
    files = written(tmp_path, "skypilot", topology)
    jsonschema.validate(yaml.safe_load(files["first-run.yaml"]), SKY)
