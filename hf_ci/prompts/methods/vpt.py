"""VPT: prompts in the image encoder's layers, and "a photo of a {class}." as the text (Jia et al., ECCV 2022; for CLIP in
MaPLe's code). Shallow: in the first layer alone."""

from __future__ import annotations

from collections.abc import Collection

from hf_ci.prompts.methods.ivlp import IVLP, is_prompt


class VPT(IVLP):
    words = "a photo of a"

    def claims(self, names: Collection[str]) -> bool:
        return "ctx" not in names and any(map(is_prompt, names))
