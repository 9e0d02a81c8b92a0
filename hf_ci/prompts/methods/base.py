"""What a method of prompt tuning is: what it tunes, what that is called, and which vectors it comes to."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from hf_ci.errors import AdapterError
from hf_ci.prompts.encoders import some
from hf_ci.visible import cut

MOST_TOKENS = 256  # in one layer of the image encoder, beside 50 to 257 of its own
LONGEST = 1e4  # a vector; numbers overflow beyond, on images that nobody has tried


@dataclass(frozen=True)
class Layers:
    """The vectors that stand in the encoders' layers, by layer; empty: the encoders are the base model's own.

    text: (n, d) from layer 1 on, each in the place of what the layer before made of the n context vectors (those of layer
    0 are the context itself). image: (m, v), those of layer 0 behind the image's own tokens, before the first layer norm,
    and each of the later ones in the place of what the layer before made of the last m.
    """

    text: dict[int, Tensor] = field(default_factory=dict)
    image: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A method that tunes a text context, and nothing in the layers.

    name: in files and reports; title: as its authors write it. measured: the detectors' thresholds were measured on
    adapters of this method. words: the context, where it is written by hand and in no checkpoint. averaged: checkpoints
    hold the mean of the model over the epochs, frozen weights and all, in their own precision.
    """

    name: str
    title: str

    measured: ClassVar[bool] = True
    words: ClassVar[str | None] = None
    averaged: ClassVar[bool] = False

    def taken(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Takes this method's tensors beside the context out of a checkpoint's; what they are called in an adapter."""
        return {}

    def check(self, context: Tensor, deep: dict[str, Tensor]) -> None:
        """Raises AdapterError where the adapter's tensors beside the context are not this method's."""
        if deep:
            raise AdapterError(
                f"method is {self.name!r}, but the weights hold prompts for the encoders' layers: {some(deep)}",
                "clip_prompt.json has to name the method that it was tuned with; fetch the whole adapter",
            )

    def layers(self, context: Tensor, deep: dict[str, Tensor]) -> Layers:
        """The vectors, of tensors that `check` let pass."""
        return Layers()

    def claims(self, names: Collection[str]) -> bool:
        """Whether a checkpoint with tensors of these names is one of this method. Those without prompts in the layers are
        told apart by the prompt learner's tensors (`hf_ci.checkpoints.layout`)."""
        return False


class DeepMethod(Method):
    """One that puts prompts into layers."""

    measured = False

    def taken(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError

    def shapes(self, text: tuple[int, int, int], image: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
        """By name, of the tensors beside the context; text, image: the layers of an encoder that prompts stand in, from 0
        on, how many stand in each, and its width."""
        raise NotImplementedError

    def check(self, context: Tensor, deep: dict[str, Tensor]) -> None:
        if not deep:
            raise AdapterError(
                f"method is {self.name!r}, but the weights hold no prompts for the encoders' layers",
                "fetch the whole adapter, or ask for it as it was written",
            )
        if context.ndim != 2:
            raise AdapterError(
                f"{self.title} with class-specific contexts is not known", "expected (tokens, dimensions)"
            )
        self.check_tensors(context, deep)

    def check_tensors(self, context: Tensor, deep: dict[str, Tensor]) -> None:
        """Names and shapes of `deep`, among themselves and beside `context` (n, d)."""
        raise NotImplementedError


def untuned(shapes: dict[str, tuple[int, ...]], generator: torch.Generator) -> dict[str, Tensor]:
    """Tensors of these names and shapes, as training code starts from: vectors are drawn with a deviation of 0.02, linear
    maps evenly within one over the root of what they take."""

    def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
        place, _, kind = name.rpartition(".")
        if kind not in ("weight", "bias"):
            return 0.02 * torch.randn(shape, generator=generator)
        return (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(shapes[f"{place}.weight"][1])

    return {name: drawn(name, shape) for name, shape in shapes.items()}


def numbered(names: Iterable[str], prefix: str) -> list[int]:
    """The numbers i of the names "{prefix}i", in order."""
    found = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return sorted(int(number) for number in found if number.isdecimal() and len(number) < 4)


def expect(found: Collection[str], expected: Collection[str], title: str) -> None:
    """Raises AdapterError that names tensors which are missing, and others that should not be there."""
    missing, other = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing:
        raise AdapterError(f"{title}'s tensors are incomplete: {some(missing)} missing", "fetch the whole file")
    if other:
        raise AdapterError(f"unexpected tensors: {some(other)}", f"expected those of {title}, and nothing else")


def expect_shape(tensor: Tensor, shape: tuple[int | None, ...], name: str, title: str) -> None:
    """None stands for any size but 0."""
    found = tuple(tensor.shape)
    if len(found) != len(shape) or not all(n == m or (m is None and n) for n, m in zip(found, shape)):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise AdapterError(
            f"{title}'s {cut(name, 80)} is {found}, expected ({wanted})", "the file is damaged, or altered"
        )


def check_layers(layers: Layers, text: tuple[int, int], image: tuple[int, int], title: str) -> None:
    """Raises AdapterError where vectors do not fit an encoder; text, image: its number of layers and width."""
    advice = "name the base model that the adapter was tuned on with --base"
    for tower, found, (depth, width) in (("text", layers.text, text), ("image", layers.image, image)):
        if found and max(found) >= depth:
            raise AdapterError(
                f"{title} prompts for layer {max(found)} of the {tower} encoder, which has layers 0 to {depth - 1}",
                advice,
            )
        for layer, vectors in found.items():
            what = f"the {tower} encoder's prompts for layer {layer}"
            if vectors.shape[-1] != width:
                raise AdapterError(f"{what} have {vectors.shape[-1]} dimensions, the base model has {width}", advice)
            if len(vectors) > MOST_TOKENS:
                raise AdapterError(
                    f"{what} are {len(vectors)}, at most {MOST_TOKENS} are read", "no training makes so many"
                )
            if not (longest := vectors.norm(dim=-1).max().item()) <= LONGEST:
                raise AdapterError(
                    f"{what} are up to {longest:.3g} long, at most {LONGEST:g} is read: numbers may overflow",
                    "no training gives such weights; ask for the adapter as it was tuned",
                )
