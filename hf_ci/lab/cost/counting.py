"""What a scan computes, counted from shapes: multiplications by the weights of linear layers; attention is left out.

A way back to the inputs counts as much as a way forward. References and prompts that do not depend on the image are
encoded once a scan, which is next to nothing and left out as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import nn

from hf_ci.certain import certain
from hf_ci.inversion import LinfInversion
from hf_ci.inversion.contrast import ContrastInversion
from hf_ci.inversion.probes import passes
from hf_ci.lab.cost.plain import PAPER_IMAGES
from hf_ci.prompts import PromptedCLIP
from hf_ci.prompts.prompted import NEAREST
from hf_ci.prompts.text import LONGEST_TREE

BATCH = LinfInversion.batch


@dataclass(frozen=True)
class Shape:
    """image, text: weights that a patch or a token meets; patches of an image, and tokens that are encoded anew for it.

    padded: of every class by itself; tokens: of all classes in trees; near: of its nearest classes. None of them where
    the prompt does not depend on the image.
    """

    classes: int
    image: float
    patches: int
    text: float
    padded: int
    tokens: int
    near: int

    @classmethod
    def of(cls, model: PromptedCLIP) -> Shape:
        clip, classes, static = model.clip, len(model.class_names), model.prompt.static
        vision, text = clip.model.config.vision_config, clip.model.text_model
        padded, tokens = classes * clip.max_length, sum(len(tree.position) for tree in model.trees)
        longest = model.short_trees.slot.shape[1]
        near = model.short_trees.shared + NEAREST * (longest - model.short_trees.shared)
        return cls(
            classes,
            weights(clip.model.vision_model),
            (vision.image_size // vision.patch_size) ** 2 + 1,
            weights(text),
            *((0, 0, 0) if static else (padded, tokens, near if classes > 2 * NEAREST else tokens)),
        )

    @property
    def exact(self) -> Shape:
        return replace(self, near=self.tokens)

    def plain(self) -> float:
        """The paper's recipe. Its score needs another pass over the images, which is not held against it."""
        return self.classes * 2 * PAPER_IMAGES * (self.patches * self.image + self.padded * self.text)

    def descent(self, images: int) -> float:
        return 2 * images * (self.patches * self.image + self.near * self.text)

    def measuring(self, images: int) -> float:
        return images * (self.patches * self.image + self.tokens * self.text)

    def screening(self) -> float:
        """Of a class: a batch there and back, and another there."""
        return 1.5 * self.descent(BATCH)

    def inversion(self, images: int) -> float:
        """Of a class, whole."""
        return self.descent(images) + self.measuring(images)

    def others(self, whole: int) -> float:
        """Of all other families: a step for every class, and so many whole."""
        return sum(
            self.classes * screening + whole * one for screening, one in map(self.family, ContrastInversion().others)
        )

    def family(self, how: ContrastInversion) -> tuple[float, float]:
        """Of a class: its screening, and whole."""
        images = certain(how.num_images)
        taken = images if how.updates is None else how.updates * how.batch
        return 1.5 * self.descent(how.batch), self.descent(taken) + self.measuring(images)

    def probes(self, images: int) -> float:
        return self.measuring(passes(images))

    def nearest(self, images: int) -> float:
        return self.measuring(images) if self.near < self.tokens else 0.0

    def steps(self, images: int, whole: int) -> dict[str, float]:
        """Of a scan in which so many classes are inverted whole."""
        return {
            "nearest classes": self.nearest(images),
            "screening": self.classes * self.screening(),
            "whole inversions": whole * self.descent(images),
            "their measure": whole * self.measuring(images),
            "other families": self.others(whole),
            "probes": self.probes(images),
        }

    def scan_exact(self, images: int) -> float:
        return self.classes * self.exact.inversion(images) + self.exact.others(self.classes) + self.probes(images)


def weights(tower: nn.Module) -> int:
    return sum(p.numel() for name, p in tower.named_parameters() if p.ndim == 2 and "embed" not in name)


def vit_b16(classes: int, own: int = 4, longest: int = 6, context: int = 4) -> Shape:
    """CoCoOp on CLIP ViT-B/16, each class's own tokens being as many as `own` on average."""
    prefix = 1 + context
    trees = math.ceil(classes * own / (LONGEST_TREE - prefix))
    tokens = trees * prefix + classes * own
    near = prefix + NEAREST * longest if classes > 2 * NEAREST else tokens
    return Shape(classes, 12 * 12 * 768**2, 197, 12 * 12 * 512**2, classes * 77, tokens, near)
