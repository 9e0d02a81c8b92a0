"""What sets one kind of base model apart from another: its classes in `transformers`, how its text tower reads, and where
its features come from. All else is the same, and is in `hf_ci.prompts.clip`.

A new kind is a class here and a line in `hf_ci.kind.BASES`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from hf_ci.errors import BaseModelError


class CLIP:
    """OpenAI's, and what is built like it: OpenCLIP's and MetaCLIP's ViTs.

    causal: a token sees those before it alone, and a text is read at its last own one, so that padding does not matter.
    Without it, all tokens see all, and a text is padded to the tower's whole length and read at the last place.
    layered: known where methods with prompts in the encoders' layers put them.
    """

    model_class: ClassVar[str] = "CLIPModel"
    processor_class: ClassVar[str] = "CLIPImageProcessorPil"
    causal: ClassVar[bool] = True
    layered: ClassVar[bool] = True

    def feature_dim(self, config: Any) -> int:
        return int(config.projection_dim)

    def frame(self, tokenizer: Any) -> tuple[list[int], list[int]]:
        """Token ids that stand before and behind every text."""
        return [tokenizer.bos_token_id], [tokenizer.eos_token_id]

    def image(self, model: Any, pooled: Tensor) -> Tensor:
        """What the image encoder made of images (B, v) -> features (B, D)."""
        features: Tensor = model.visual_projection(pooled)
        return features

    def text(self, model: Any, pooled: Tensor) -> Tensor:
        """What the text encoder made of texts (..., d), normed -> features (..., D)."""
        features: Tensor = model.text_projection(pooled)
        return features

    def logits(self, model: Any, similarity: Tensor) -> Tensor:
        """Of cosine similarities, of any shape."""
        logits: Tensor = model.logit_scale.float().exp() * similarity
        return logits

    def check(self, config: Any) -> None:
        """Raises BaseModelError for a variant of which no forward pass is known."""


class SigLIP(CLIP):
    """SigLIP, and SigLIP 2 of fixed resolution, which `transformers` loads as the same class.

    Its texts have no start token, so that the context comes first. They are padded, and the padding is seen: the models
    were trained so, without a mask. The classes' probabilities are sigmoids of the logits; the likeliest is the same.
    """

    model_class = "SiglipModel"
    processor_class = "SiglipImageProcessorPil"
    causal = False
    layered = False

    def feature_dim(self, config: Any) -> int:
        return int(config.text_config.projection_size)

    def frame(self, tokenizer: Any) -> tuple[list[int], list[int]]:
        whole, own = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
        start = next(i for i in range(len(whole)) if whole[i : i + len(own)] == own)
        return whole[:start], whole[start + len(own) :]

    def image(self, model: Any, pooled: Tensor) -> Tensor:
        return pooled  # by the attention of its head

    def text(self, model: Any, pooled: Tensor) -> Tensor:
        features: Tensor = model.text_model.head(pooled)
        return features

    def logits(self, model: Any, similarity: Tensor) -> Tensor:
        logits: Tensor = super().logits(model, similarity) + model.logit_bias.float()
        return logits

    def check(self, config: Any) -> None:
        image, text = config.vision_config, config.text_config
        if not image.vision_use_head or image.hidden_size != text.projection_size:
            head = "a head" if image.vision_use_head else "no head"
            raise BaseModelError(
                f"the image encoder has {head} and {image.hidden_size} dimensions, the text encoder gives "
                f"{text.projection_size}: expected a head, and the same",
                "give a whole SigLIP with --base",
            )


FAMILIES: dict[str, CLIP] = {"clip": CLIP(), "siglip": SigLIP()}
