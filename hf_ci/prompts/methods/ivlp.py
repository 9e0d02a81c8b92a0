"""IVLP: prompts in the layers of both encoders, each tuned by itself (Khattak et al., MaPLe's baseline, CVPR 2023).

text.i     (n, d), i from 1
image.i    (m, v), i from 0
"""

from __future__ import annotations

import re
from collections.abc import Collection

from torch import Tensor

from hf_ci.errors import AdapterError
from hf_ci.prompts.methods.base import DeepMethod, Layers, expect, expect_shape, numbered

SHALLOW = "image_encoder.VPT"
DEEP = re.compile(r"(text|image)_encoder\.transformer\.resblocks\.([1-9][0-9]{0,2})\.VPT_shallow")


class IVLP(DeepMethod):
    def claims(self, names: Collection[str]) -> bool:
        return "ctx" in names and any(map(is_prompt, names))

    def taken(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name in [name for name in tensors if is_prompt(name)]:
            match = DEEP.fullmatch(name)
            encoder, layer = match.groups() if match else ("image", 0)
            found[f"{encoder}.{int(layer)}"] = tensors.pop(name)
        return found

    def shapes(self, text: tuple[int, int, int], image: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
        (deep_text, *words), (deep_image, *tokens) = text, image
        texts = {f"text.{i}": tuple(words) for i in range(1, deep_text)}
        return texts | {f"image.{i}": tuple(tokens) for i in range(deep_image)}

    def check_tensors(self, context: Tensor, deep: dict[str, Tensor]) -> None:
        text, image = numbered(deep, "text."), numbered(deep, "image.")
        last = {"text": max(text, default=0), "image": max(image, default=-1)}
        first = {"text": 1, "image": 0}
        names = [f"{encoder}.{i}" for encoder in first for i in range(first[encoder], last[encoder] + 1)]
        expect(deep, names, self.title)
        tokens = len(deep["image.0"]) if image else None
        for name in names:
            shape = tuple(context.shape) if name.startswith("text.") else (tokens, None)
            expect_shape(deep[name], shape, name, self.title)
        if text and self.words:
            raise AdapterError(
                f"{self.title} has prompts for the text encoder: text.1", "it tunes the image encoder's alone"
            )

    def layers(self, context: Tensor, deep: dict[str, Tensor]) -> Layers:
        def of(encoder: str) -> dict[int, Tensor]:
            return {i: deep[f"{encoder}.{i}"] for i in numbered(deep, f"{encoder}.")}

        return Layers(of("text"), of("image"))


def is_prompt(name: str) -> bool:
    return name == SHALLOW or bool(DEEP.fullmatch(name))
