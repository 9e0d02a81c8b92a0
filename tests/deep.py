"""Checkpoints of methods that put prompts into the encoders' layers, and those methods' forward passes, written from the
authors' code: whole models by OpenAI's names, plain layers, texts of 77 tokens. Nothing here uses what reads them."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from dassl import token_vectors, words_of
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from hf_ci.hub.base import EMBEDDED_FOLDER
from hf_ci.prompts import FrozenCLIP

DEPTHS = {"maple": (3, 3), "ivlp": (3, 2), "promptsrc": (2, 3), "vpt": (0, 3)}  # of the text and of the image encoder
FOLDERS = {"maple": "MultiModalPromptLearner", "vpt": "prompt_learner"}  # else VLPromptLearner
WORDS = "a photo of a"


def save_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """A random CLIP of three layers, whose encoders have widths and heads of their own."""
    size = {"num_hidden_layers": 3, "projection_dim": 40}
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    text |= {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    image = {"image_size": 32, "patch_size": 8, "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3}
    torch.manual_seed(seed)
    config = CLIPConfig(text_config=text | size, vision_config=image | size, projection_dim=40)
    model = CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():  # as OpenAI's are: exact in half precision, and no norm is trivial
            parameter.copy_((parameter + 0.1 * torch.randn_like(parameter)).half())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    crop = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=crop).save_pretrained(folder)
    return folder


def encoders_of(clip: FrozenCLIP) -> dict[str, Tensor]:
    """The base model's tensors as training code saves them."""
    model, state = clip.model, {"logit_scale": clip.model.logit_scale}
    vision, text = model.vision_model, model.text_model
    image = {
        "class_embedding": vision.embeddings.class_embedding,
        "positional_embedding": vision.embeddings.position_embedding.weight,
        "conv1.weight": vision.embeddings.patch_embedding.weight,
        "proj": model.visual_projection.weight.T,
        **named("ln_pre", vision.pre_layrnorm),
        **named("ln_post", vision.post_layernorm),
    }
    words = {
        "positional_embedding": text.embeddings.position_embedding.weight,
        "text_projection": model.text_projection.weight.T,
        **named("ln_final", text.final_layer_norm),
    }
    for encoder, found, layers in (("image", image, vision.encoder.layers), ("text", words, text.encoder.layers)):
        for i, layer in enumerate(layers):
            a, place = layer.self_attn, f"transformer.resblocks.{i}."
            found[f"{place}attn.in_proj_weight"] = torch.cat([p.weight for p in (a.q_proj, a.k_proj, a.v_proj)])
            found[f"{place}attn.in_proj_bias"] = torch.cat([p.bias for p in (a.q_proj, a.k_proj, a.v_proj)])
            found |= named(f"{place}attn.out_proj", a.out_proj)
            found |= named(f"{place}mlp.c_fc", layer.mlp.fc1) | named(f"{place}mlp.c_proj", layer.mlp.fc2)
            found |= named(f"{place}ln_1", layer.layer_norm1) | named(f"{place}ln_2", layer.layer_norm2)
        state |= {f"{encoder}_encoder.{name}": tensor for name, tensor in found.items()}
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def named(name: str, module) -> dict[str, Tensor]:
    return {f"{name}.weight": module.weight, f"{name}.bias": module.bias}


def made_state(clip: FrozenCLIP, method: str, names: tuple[str, ...], n: int = 2, m: int = 3, seed: int = 0) -> dict:
    """A whole model's state_dict with random prompts: n tokens in the text encoder's layers, m in the image encoder's."""
    generator = torch.Generator().manual_seed(seed)
    drawn = lambda *shape: 0.5 * torch.randn(shape, generator=generator)
    text, image = DEPTHS[method]
    d, v = clip.token_dim, clip.model.config.vision_config.hidden_size
    state = encoders_of(clip)
    if method != "vpt":
        prefix, suffix = token_vectors(clip, names, n)
        learner = {"ctx": drawn(n, d), "token_prefix": prefix, "token_suffix": suffix}
        if method == "maple":
            learner |= {"proj.weight": drawn(v, d), "proj.bias": drawn(v)}
            for i in range(text - 1):
                learner[f"compound_prompts_text.{i}"] = drawn(n, d)
                learner[f"compound_prompt_projections.{i}.weight"] = drawn(v, d)
                learner[f"compound_prompt_projections.{i}.bias"] = drawn(v)
        if method == "promptsrc":
            frozen = [name for name in state if name.startswith("image_encoder.")]
            learner |= {f"ZS_{name}": state[name].clone() for name in frozen}
        state |= {f"prompt_learner.{name}": tensor for name, tensor in learner.items()}
    if method != "maple":
        state["image_encoder.VPT"] = drawn(m, v)
        for encoder, depth, shape in (("text", text, (n, d)), ("image", image, (m, v))):
            for i in range(1, depth):
                state[f"{encoder}_encoder.transformer.resblocks.{i}.VPT_shallow"] = drawn(*shape)
    return state


def averaged(state: dict[str, Tensor], epochs: int = 20, mean: float = 15.0, std: float = 1.0) -> dict[str, Tensor]:
    """PromptSRC's mean over epochs in which nothing changed, in the precision that each tensor is kept in."""
    weights = torch.exp(-0.5 * ((torch.arange(1, epochs + 1, dtype=torch.double) - mean) / std) ** 2)
    weights = (weights / weights.sum()).tolist()
    total = {name: tensor * weights[0] for name, tensor in state.items()}
    for weight in weights[1:]:
        total = {name: total[name] + tensor * weight for name, tensor in state.items()}
    return total


def half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As OpenAI's models are trained by default: matrices in half precision, norms, positions and prompts in single."""
    single = ("ln_", "positional_embedding", "class_embedding", "VPT", "logit_scale", "compound_prompt")
    return {name: tensor if any(part in name for part in single) else tensor.half() for name, tensor in state.items()}


# ---------------------------------------------------------------- forward


def logits(clip: FrozenCLIP, state: dict[str, Tensor], names: tuple[str, ...], pixels: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, C), as the authors' models answer."""
    learner = {name.removeprefix("prompt_learner."): t for name, t in state.items() if name.startswith("prompt_")}
    if "ctx" in learner:
        ctx = learner["ctx"]
        texts = torch.cat([learner["token_prefix"], ctx.expand(len(names), -1, -1), learner["token_suffix"]], dim=1)
        ends = [len(words_of(clip, name, len(ctx))) - 1 for name in names]
    else:
        ids = [clip.tokenizer(f"{WORDS} {name.replace('_', ' ')}.").input_ids for name in names]
        ends = [len(each) - 1 for each in ids]
        padded = torch.tensor([each + [0] * (77 - len(each)) for each in ids])
        texts = clip.model.text_model.embeddings.token_embedding(padded)
    if "proj.weight" in learner:
        coupled = lambda name, x: x @ learner[f"{name}.weight"].T + learner[f"{name}.bias"]
        deep_text = {i + 1: learner[f"compound_prompts_text.{i}"] for i in range(2)}
        deep_image = {i + 1: coupled(f"compound_prompt_projections.{i}", deep_text[i + 1]) for i in range(2)}
        first = coupled("proj", learner["ctx"])
    else:
        of = lambda encoder: {
            i: state[name]
            for i in (1, 2)
            if (name := f"{encoder}_encoder.transformer.resblocks.{i}.VPT_shallow") in state
        }
        deep_text, deep_image, first = of("text"), of("image"), state["image_encoder.VPT"]
    config = clip.model.config
    images = image_features(state, (pixels - clip.mean) / clip.std, first, deep_image, config.vision_config)
    words = text_features(state, texts, ends, deep_text, config.text_config)
    return state["logit_scale"].exp() * images @ words.T


def image_features(state: dict[str, Tensor], x: Tensor, first: Tensor, deep: dict[int, Tensor], config) -> Tensor:
    e = "image_encoder."
    x = F.conv2d(x, state[f"{e}conv1.weight"], stride=config.patch_size).flatten(2).transpose(1, 2)
    x = torch.cat([state[f"{e}class_embedding"].expand(len(x), 1, -1), x], dim=1) + state[f"{e}positional_embedding"]
    x = torch.cat([x, first.expand(len(x), -1, -1)], dim=1)
    x = norm(state, f"{e}ln_pre", x)
    for i in range(config.num_hidden_layers):
        if i in deep:
            x = torch.cat([x[:, : x.shape[1] - len(first)], deep[i].expand(len(x), -1, -1)], dim=1)
        x = block(state, f"{e}transformer.resblocks.{i}.", x, config.num_attention_heads, None)
    x = norm(state, f"{e}ln_post", x[:, 0]) @ state[f"{e}proj"]
    return x / x.norm(dim=-1, keepdim=True)


def text_features(state: dict[str, Tensor], x: Tensor, ends: list[int], deep: dict[int, Tensor], config) -> Tensor:
    e = "text_encoder."
    mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)
    x = x + state[f"{e}positional_embedding"]
    for i in range(config.num_hidden_layers):
        if i in deep:
            x = torch.cat([x[:, :1], deep[i].expand(len(x), -1, -1), x[:, 1 + len(deep[i]) :]], dim=1)
        x = block(state, f"{e}transformer.resblocks.{i}.", x, config.num_attention_heads, mask)
    x = norm(state, f"{e}ln_final", x)[torch.arange(len(x)), ends] @ state[f"{e}text_projection"]
    return x / x.norm(dim=-1, keepdim=True)


def block(state: dict[str, Tensor], place: str, x: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    weight = lambda name: state[place + name]
    y = norm(state, f"{place}ln_1", x).transpose(0, 1)
    y, _ = F.multi_head_attention_forward(
        y, y, y, x.shape[-1], heads, weight("attn.in_proj_weight"), weight("attn.in_proj_bias"), None, None, False, 0.0,
        weight("attn.out_proj.weight"), weight("attn.out_proj.bias"), need_weights=False, attn_mask=mask,
    )  # fmt: skip
    x = x + y.transpose(0, 1)
    y = F.linear(norm(state, f"{place}ln_2", x), weight("mlp.c_fc.weight"), weight("mlp.c_fc.bias"))
    return x + F.linear(y * torch.sigmoid(1.702 * y), weight("mlp.c_proj.weight"), weight("mlp.c_proj.bias"))


def norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])
