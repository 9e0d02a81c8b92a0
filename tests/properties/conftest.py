"""As many inputs as fit into a test run, the same ones each time; HF_CI_INPUTS asks for more, and then for others."""

import os

from hypothesis import settings

settings.register_profile("tests", max_examples=100, deadline=None, derandomize=True, database=None)
settings.load_profile("tests")
if "HF_CI_INPUTS" in os.environ:
    settings.register_profile("many", max_examples=int(os.environ["HF_CI_INPUTS"]), deadline=None)
    settings.load_profile("many")
