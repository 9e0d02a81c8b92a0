"""Here the adapter on disk has every part that there is: a meta-net, too."""

import pytest
from making import made_adapter

from hf_ci.prompts import write_adapter


@pytest.fixture
def adapter_folder(clip, tmp_path):
    write_adapter(made_adapter(clip), tmp_path / "adapter")
    return tmp_path / "adapter"
