"""MaPLe: prompts in the layers of both encoders, the image encoder's made of the text encoder's (Khattak et al., CVPR 2023).

compound_prompts_text.i                       (n, d): the text encoder's for layer i + 1
proj.{weight,bias}                            (v, d), (v,): the context -> the image encoder's for layer 0
compound_prompt_projections.i.{weight,bias}   the same, compound_prompts_text.i -> the image encoder's for layer i + 1
"""

from __future__ import annotations

from collections.abc import Collection

import torch.nn.functional as F
from torch import Tensor

from hf_ci.prompts.methods.base import DeepMethod, Layers, expect, expect_shape, numbered

TEXT, COUPLING, FIRST = "compound_prompts_text.", "compound_prompt_projections.", "proj."


class MaPLe(DeepMethod):
    def claims(self, names: Collection[str]) -> bool:
        return any(name.startswith((TEXT, COUPLING)) for name in names) or (
            "ctx" in names and f"{FIRST}weight" in names
        )

    def taken(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensors.pop(name) for name in list(tensors) if name.startswith((TEXT, COUPLING, FIRST))}

    def shapes(self, text: tuple[int, int, int], image: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
        (layers, n, d), v = text, image[-1]
        names = [FIRST, *(f"{COUPLING}{i}." for i in range(layers - 1))]
        found: dict[str, tuple[int, ...]] = {f"{TEXT}{i}": (n, d) for i in range(layers - 1)}
        for name in names:
            found |= {f"{name}weight": (v, d), f"{name}bias": (v,)}
        return found

    def check_tensors(self, context: Tensor, deep: dict[str, Tensor]) -> None:
        n, d = context.shape
        depth = max(numbered(deep, TEXT), default=-1) + 1
        couplings = [FIRST, *(f"{COUPLING}{i}." for i in range(depth))]
        texts = [f"{TEXT}{i}" for i in range(depth)]
        expect(deep, [*texts, *(f"{name}{kind}" for name in couplings for kind in ("weight", "bias"))], self.title)
        for name in texts:
            expect_shape(deep[name], (n, d), name, self.title)
        expect_shape(deep[f"{FIRST}weight"], (None, d), f"{FIRST}weight", self.title)
        width = len(deep[f"{FIRST}weight"])
        for name in couplings:
            for kind, shape in (("weight", (width, d)), ("bias", (width,))):
                expect_shape(deep[name + kind], shape, name + kind, self.title)

    def layers(self, context: Tensor, deep: dict[str, Tensor]) -> Layers:
        def made(name: str, vectors: Tensor) -> Tensor:
            return F.linear(vectors, deep[f"{name}weight"], deep[f"{name}bias"])

        text = {i + 1: deep[f"{TEXT}{i}"] for i in numbered(deep, TEXT)}
        image = {i: made(f"{COUPLING}{i - 1}.", vectors) for i, vectors in text.items()}
        return Layers(text, {0: made(FIRST, context)} | image)
