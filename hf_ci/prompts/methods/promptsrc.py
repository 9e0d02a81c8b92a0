"""PromptSRC: IVLP's prompts, tuned to stay near the frozen CLIP and averaged over the epochs (Khattak et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Collection

from hf_ci.prompts.methods.ivlp import IVLP


class PromptSRC(IVLP):
    averaged = True

    def claims(self, names: Collection[str]) -> bool:
        return super().claims(names) and any(name.startswith("ZS_image_encoder.") for name in names)
