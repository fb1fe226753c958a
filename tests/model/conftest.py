"""A folder that tests of Hugging Face folders damage."""

import pytest
from hugging_face_folders import SMALL, small_params

from rljax.model import hugging_face


@pytest.fixture
def folder(tmp_path):
    """A sound folder of the small decoder, to be broken."""
    hugging_face.save(tmp_path / "model", SMALL, small_params())
    return tmp_path / "model"
