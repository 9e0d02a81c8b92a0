"""Prompt learners: what gives the context vectors.

A prompt module maps image features (B, D) to context vectors (B or 1, C or 1, n, d); a leading 1 means that the
context does not depend on the image, so that text features can be computed once. `layers` are the vectors that it puts
into the encoders' layers.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from hf_ci.prompts.methods import DeepMethod, Layers


class CoOp(nn.Module):
    """Zhou et al., "Learning to prompt for vision-language models", IJCV 2022.

    `context` is (n, d), shared by all classes, or (C, n, d), one per class. KgCoOp (Yao et al., CVPR 2023) tunes with
    another loss and stores the same thing.
    """

    static = True

    def __init__(self, context: Tensor):
        super().__init__()
        self.ctx = nn.Parameter(context.float().clone())

    @property
    def layers(self) -> Layers:
        return Layers()

    def forward(self, image_features: Tensor | None = None) -> Tensor:
        ctx = self.ctx if self.ctx.ndim == 3 else self.ctx[None]
        return ctx[None]  # (1, C or 1, n, d)


class CoCoOp(nn.Module):
    """Zhou et al., "Conditional prompt learning for vision-language models", CVPR 2022.

    A two-layer meta-net turns the image's features into one vector that is added to every context vector.
    """

    static = False
    layers = Layers()

    def __init__(self, context: Tensor, meta_net: MetaNet):
        super().__init__()
        self.ctx = nn.Parameter(context.float().clone())
        self.meta_net = meta_net

    def forward(self, image_features: Tensor) -> Tensor:
        bias: Tensor = self.meta_net(image_features)  # (B, d)
        return (self.ctx[None] + bias[:, None])[:, None]  # (B, 1, n, d)


class Deep(CoOp):
    """A context (n, d) and a method's tensors for the encoders' layers, by the names that it gives them.

    The context stays as it is where the method writes it by hand.
    """

    def __init__(self, method: DeepMethod, context: Tensor, deep: dict[str, Tensor]):
        super().__init__(context)
        self.method, self.names = method, tuple(deep)  # the names have dots, which those of parameters may not
        self.tensors = nn.ParameterList(nn.Parameter(tensor.float().clone()) for tensor in deep.values())
        self.ctx.requires_grad_(method.words is None)

    @property
    def deep(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.tensors))

    @property
    def layers(self) -> Layers:
        return self.method.layers(self.ctx, self.deep)


Prompt = CoOp | CoCoOp


class MetaNet(nn.Sequential):
    """CoCoOp's, with the names of its layers."""

    linear1: nn.Linear
    linear2: nn.Linear


def build_meta_net(feature_dim: int, token_dim: int, hidden: int | None = None) -> MetaNet:
    """feature_dim -> feature_dim / 16 -> token_dim, with CoCoOp's own key names."""
    hidden = hidden or max(1, feature_dim // 16)
    return MetaNet(
        OrderedDict[str, nn.Module](
            linear1=nn.Linear(feature_dim, hidden),
            relu=nn.ReLU(inplace=False),
            linear2=nn.Linear(hidden, token_dim),
        )
    )
