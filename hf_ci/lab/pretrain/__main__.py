"""Train the embedded CLIP from labelled photos, from nothing to a ``CLIPModel`` folder.

    python -m hf_ci.lab.pretrain --work WORK --out OUT --words words.txt \\
        --source tiny=DIR --source cifar10=train.parquet ... --eval cifar10=test.parquet ...

A source is a parquet file with ``image`` and ``label`` columns, or a folder ``<label>/**/*.jpg`` whose labels
may be WordNet ids (``words.txt`` of tiny_imagenet gives their names; it is also the tokenizer's corpus).

Recipe: every image is contrasted with the class texts of its own source (a multi-positive image-to-text
contrastive loss; sources share words such as "dog", so negatives never cross sources), plus distillation from an
ImageNet classifier through its own head (as in Yang et al., "Knowledge distillation via softmax regression
representation learning", ICLR 2021). Half of the patches are dropped for most of the run (Li et al., "Scaling
language-image pre-training via masking", CVPR 2023). Muon moves the matrices, AdamW the rest; bf16 compute on
fp32 master weights; the exported weights are an exponential moving average.

Training saves as it goes and resumes from ``WORK/checkpoint.pt``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from hf_ci.lab.pretrain.data import Photos, augment, load_source, teacher_targets, wordnet_names
from hf_ci.lab.pretrain.model import (
    MEAN_STD,
    TEMPLATES,
    build_model,
    build_tokenizer,
    export,
    image_embeds,
    mimetic_init,
    text_embeds,
)


@torch.inference_mode()
def zero_shot(model, tokenizer, images, labels, names, mean, std) -> float:
    """Zero-shot top-1 of "a photo of a {}." on `images` (n, 64, 64, 3)."""
    w = F.normalize(text_embeds(model, tokenizer, [f"a photo of a {n}." for n in names]), dim=1)
    hits = 0
    for i in range(0, len(images), 250):
        x = torch.from_numpy(images[i : i + 250]).permute(0, 3, 1, 2).float() / 255
        x = ((x - mean) / std).to(model.dtype)
        hits += int(((image_embeds(model, x) @ w.T).argmax(1).numpy() == labels[i : i + 250]).sum())
    return hits / len(images)


def split_parameters(model, head):
    """Muon takes the encoders' matrices; embeddings, projections, norms, biases and the head go to AdamW."""
    matrices, rest = [], []
    for name, p in list(model.named_parameters()) + list(head.named_parameters()):
        (matrices if p.ndim == 2 and ".encoder.layers." in name else rest).append((name, p))
    return matrices, rest


def train(args, photos: Photos, evals: dict, targets, tokenizer) -> None:
    torch.manual_seed(args.seed)
    features, teacher_w, teacher_b = targets
    model = build_model(tokenizer)
    mimetic_init(model.vision_model)
    head = torch.nn.Linear(512, features.shape[1])
    compute = build_model(tokenizer).bfloat16()  # the bf16 copy that runs forward and backward
    compute.set_attn_implementation("eager")  # twice as fast as sdpa's backward on CPU at these lengths
    compute_head = torch.nn.Linear(512, features.shape[1])
    average = build_model(tokenizer)
    average.load_state_dict(model.state_dict())
    pairs = list(zip([*model.parameters(), *head.parameters()], [*compute.parameters(), *compute_head.parameters()]))

    matrices, rest = split_parameters(model, head)
    muon = torch.optim.Muon(
        [p for _, p in matrices], lr=args.lr, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(
        [
            {"params": [p for _, p in rest if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for _, p in rest if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in MEAN_STD)

    step, checkpoint, log = 0, args.work / "checkpoint.pt", args.work / "log.jsonl"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(state["model"]), head.load_state_dict(state["head"])
        average.load_state_dict(state["average"])
        muon.load_state_dict(state["muon"]), adam.load_state_dict(state["adam"])
        step = state["step"]
        torch.manual_seed(args.seed + step)
    batches = photos.batches(args.seed + step, args.batch)
    own = photos.own
    started, seen = time.time(), 0

    while step < args.steps:
        progress = step / args.steps
        rate = min(1, (step + 1) / 300) * min(1, (1 - progress) / args.decay)  # warm up, hold, decay to zero
        for optimiser in (muon, adam):
            for group in optimiser.param_groups:
                group["lr"] = args.lr * rate
        scale = math.exp(math.log(20) + min(1, progress / 0.2) * math.log(100 / 20))
        keep = 0.5 if progress < args.full_from else 1.0

        index = next(batches)
        with torch.no_grad():
            for master, working in pairs:
                working.copy_(master)
            x = torch.from_numpy(photos.images[index]).permute(0, 3, 1, 2).float() / 255
            x = ((augment(x) - mean) / std).bfloat16()
        templates = np.random.default_rng(args.seed + step).integers(len(TEMPLATES), size=len(photos.names))
        texts = [TEMPLATES[t].format(n) for t, n in zip(templates, photos.names)]

        v = image_embeds(compute, x, keep)  # (B, 512)
        w = F.normalize(text_embeds(compute, tokenizer, texts), dim=1)  # (C, 512)
        logits = scale * F.normalize(v, dim=1) @ w.T  # (B, C)
        logits = logits.masked_fill(~own[photos.source[index]], float("-inf"))
        contrast = F.cross_entropy(logits, torch.from_numpy(photos.labels[index]))
        f_t = features[index].float()
        f_s = compute_head(v)
        soft = F.softmax(F.linear(f_t, teacher_w, teacher_b), dim=1)
        distil = (
            F.cross_entropy(F.linear(f_s, teacher_w, teacher_b), soft) + 2 * (1 - F.cosine_similarity(f_s, f_t)).mean()
        )
        (contrast + args.distil * distil).backward()
        for master, working in pairs:
            master.grad = None if working.grad is None else working.grad.float()
            working.grad = None
        torch.nn.utils.clip_grad_norm_([p for _, p in rest], 1.0)
        muon.step(), adam.step()
        step, seen = step + 1, seen + len(index)
        with torch.no_grad():
            beta = min(0.998, step / (step + 10))
            for a, p in zip(average.parameters(), model.parameters()):
                a.lerp_(p, 1 - beta)
            for m in (model, average):
                m.logit_scale.fill_(math.log(scale))

        if step % args.log_every == 0 or step == args.steps:
            accuracy = {n: round(zero_shot(average, tokenizer, *e, mean, std), 4) for n, e in evals.items()}
            line = dict(
                step=step,
                contrast=round(contrast.item(), 3),
                distil=round(distil.item(), 3),
                **accuracy,
                images_per_s=round(seen / (time.time() - started)),
                minutes=round((time.time() - started) / 60, 1),
            )
            print(json.dumps(line), flush=True)
            log.open("a").write(json.dumps(line) + "\n")
            torch.save(
                dict(
                    model=model.state_dict(),
                    head=head.state_dict(),
                    average=average.state_dict(),
                    muon=muon.state_dict(),
                    adam=adam.state_dict(),
                    step=step,
                ),
                checkpoint.with_suffix(".tmp"),
            )
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            export(average, args.out)
            started, seen = time.time(), 0


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m hf_ci.lab.pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--eval", action="append", default=[], metavar="NAME=PATH", help="watched, never trained on")
    parser.add_argument("--words", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=0.4, help="share of the run over which the rate falls to 0")
    parser.add_argument(
        "--full-from", type=float, default=0.85, help="share of the run after which no patch is dropped"
    )
    parser.add_argument("--distil", type=float, default=0.5, help="weight of the distillation loss")
    parser.add_argument("--log-every", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    names_of = wordnet_names(args.words)
    sources = [load_source(n, Path(p), args.work, names_of) for n, p in (s.split("=", 1) for s in args.source)]
    evals = {n: load_source(f"eval-{n}", Path(p), args.work, names_of) for n, p in (s.split("=", 1) for s in args.eval)}
    photos = Photos(sources)
    tokenizer = build_tokenizer(args.words, args.out)
    targets = teacher_targets(photos.images, args.work / "teacher.pt")
    train(args, photos, evals, targets, tokenizer)


if __name__ == "__main__":
    main()
