"""Files as Dassl and its kin write them, and CoOp's and CoCoOp's forward passes, written from the papers' code.

Nothing here uses what reads them: texts are laid out whole, 77 tokens each, and encoded by `transformers` itself.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_ci.prompts import Adapter, FrozenCLIP


class ConstantWarmup(torch.optim.lr_scheduler.LRScheduler):
    """Dassl's: keeps the schedule that follows the warm-up as a live object, and so does its state_dict()."""

    def __init__(self, optimizer, successor):
        self.successor = successor
        super().__init__(optimizer)

    def get_lr(self):
        return [1e-5 for _ in self.base_lrs]


def words_of(clip: FrozenCLIP, name: str, num_context: int) -> list[int]:
    """Tokens of "X X X X name.", with start and end."""
    return clip.tokenizer("X " * num_context + name.replace("_", " ") + ".").input_ids


def token_vectors(clip: FrozenCLIP, names: tuple[str, ...], num_context: int) -> tuple[Tensor, Tensor]:
    """token_prefix (C, 1, d) and token_suffix (C, 76 - n, d) of "X X X X name.", padded with token 0 as OpenAI's tokenizer does."""
    tokens = torch.zeros(len(names), clip.max_length, dtype=torch.long)
    for row, name in zip(tokens, names):
        words = words_of(clip, name, num_context)
        row[: len(words)] = torch.tensor(words)
    with torch.no_grad():
        vectors = clip.model.text_model.embeddings.token_embedding(tokens)
    return vectors[:, :1], vectors[:, 1 + num_context :]


def learner_state(clip: FrozenCLIP, adapter: Adapter) -> dict[str, Tensor]:
    """A prompt learner's state_dict, in the order of the training code."""
    prefix, suffix = token_vectors(clip, adapter.class_names, adapter.context.shape[-2])
    state = {"ctx": nn.Parameter(adapter.context.clone()), "token_prefix": prefix, "token_suffix": suffix}
    return state | {f"meta_net.{key}": tensor for key, tensor in adapter.meta_net.items()}


def save_checkpoint(state: dict[str, Tensor], folder: Path, epoch: int = 10, half: bool = False) -> Path:
    """As Dassl: optimiser with momentum, warm-up scheduler with a live successor, and the file's name in `checkpoint`."""
    weight = nn.Parameter(state["ctx"].detach().clone()) if "ctx" in state else nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.SGD([weight], lr=0.002, momentum=0.9, weight_decay=5e-4)
    schedule = ConstantWarmup(optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, float(epoch)))
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    schedule.step()
    file = folder / f"model.pth.tar-{epoch}"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "state_dict": {key: tensor.half() if half else tensor for key, tensor in state.items()},
            "epoch": epoch,
            "optimizer": optimizer.state_dict(),
            "scheduler": schedule.state_dict(),
            "val_result": None,
        },
        file,
    )
    (folder / "checkpoint").write_text(file.name + "\n")
    return file


def logits(clip: FrozenCLIP, adapter: Adapter, position: str, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, C): one whole text for each class, and for each image where there is a meta-net."""
    model = clip.model
    images = model.get_image_features(pixel_values=(pixels - clip.mean) / clip.std).pooler_output
    images = images / images.norm(dim=-1, keepdim=True)
    prefix, suffix = token_vectors(clip, adapter.class_names, adapter.context.shape[-2])
    ends = [len(words_of(clip, name, adapter.context.shape[-2])) - 1 for name in adapter.class_names]
    answers = []
    for image in images:
        context = adapter.context
        if net := adapter.meta_net:
            hidden = F.relu(F.linear(image, net["linear1.weight"], net["linear1.bias"]))
            context = context + F.linear(hidden, net["linear2.weight"], net["linear2.bias"])
        contexts = context if context.ndim == 3 else [context] * len(prefix)
        texts = [text(clip, *each, position) for each in zip(contexts, adapter.class_names, prefix, suffix)]
        hidden = encode(clip, torch.stack(texts))
        features = model.text_projection(hidden[torch.arange(len(ends)), ends])
        answers.append(model.logit_scale.exp() * image @ (features / features.norm(dim=-1, keepdim=True)).T)
    return torch.stack(answers)


def text(clip, ctx: Tensor, name: str, prefix: Tensor, suffix: Tensor, position: str) -> Tensor:
    """(77, d): what CoOp's prompt learner concatenates for one class."""
    length, half = len(clip.tokenizer(name.replace("_", " "), add_special_tokens=False).input_ids), len(ctx) // 2
    parts = {
        "end": [ctx, suffix],
        "middle": [ctx[:half], suffix[:length], ctx[half:], suffix[length:]],
        "front": [suffix[:length], ctx, suffix[length:]],
    }[position]
    return torch.cat([prefix, *parts])


def encode(clip: FrozenCLIP, texts: Tensor) -> Tensor:
    """(C, 77, d) without positions -> (C, 77, d): plain layers of attention under a causal mask."""
    text = clip.model.text_model
    x = texts + text.embeddings.position_embedding.weight[: texts.shape[1]]
    for layer in text.encoder.layers:
        a = layer.self_attn
        y = layer.layer_norm1(x)
        q, k, v = (f(y).unflatten(-1, (a.num_heads, -1)).transpose(1, 2) for f in (a.q_proj, a.k_proj, a.v_proj))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + a.out_proj(y.transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.layer_norm2(x))
    return text.final_layer_norm(x)
