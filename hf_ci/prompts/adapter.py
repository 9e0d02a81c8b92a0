"""Prompt adapters on disk: stock PEFT (PROMPT_TUNING) with one `clip_prompt.json` beside it.

    adapter_config.json         PEFT's own: peft_type, num_virtual_tokens, token_dim, base_model_name_or_path, revision
    adapter_model.safetensors   prompt_embeddings (n, d), or (C * n, d) when class-specific; base_model.meta_net.*;
                                base_model.deep_prompts.*, of methods with prompts in the encoders' layers
    clip_prompt.json            what PEFT has no field for: method, class names, class-token position, version

Only safetensors are read. Weights of the base model, there or in a model.safetensors beside it, are no part of the
adapter; `hf_ci.prompts.encoders` compares them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from hf_ci import __version__
from hf_ci.errors import AdapterError
from hf_ci.files import PROMPT, WEIGHTS, whole_folder
from hf_ci.kind import POSITIONS, check_kind, read_json, read_whole
from hf_ci.prompts.encoders import base_name, reading, some
from hf_ci.prompts.methods import METHODS, Layers
from hf_ci.visible import code_points, cut, invisible_in, lookalikes_in

FORMAT, TEMPLATE = 1, "{context} {name}."
MOST_CLASSES, LONGEST_NAME = 10_000, 400  # letters; a text tower reads 77 tokens
META_NET, DEEP = "base_model.meta_net.", "base_model.deep_prompts."
META_NET_KEYS = {"linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias"}


@dataclass(frozen=True)
class Adapter:
    """A tuned prompt: context (n, d) or (C, n, d) fp32, meta-net tensors (empty without one), class names in order.

    deep: what the method puts into the encoders' layers, by the names that it gives it (`hf_ci.prompts.methods`).
    repaired_from: sha256 of the weights that it is a repair of; None for an original. files: (path, sha256) of what it
    was read from, sorted; empty where it was made.
    """

    method: str
    context: Tensor
    class_names: tuple[str, ...]
    base_model: str
    base_revision: str | None = None
    meta_net: dict[str, Tensor] = field(default_factory=dict)
    class_token_position: str = "end"
    repaired_from: str | None = None
    files: tuple[tuple[str, str], ...] = ()
    deep: dict[str, Tensor] = field(default_factory=dict)

    @property
    def layers(self) -> Layers:
        """The vectors that stand in the encoders' layers."""
        return METHODS[self.method].layers(self.context, self.deep)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors under PEFT's names."""
        named = {"prompt_embeddings": self.context.detach().float().reshape(-1, self.context.shape[-1]).contiguous()}
        more = {META_NET + k: v for k, v in self.meta_net.items()} | {DEEP + k: v for k, v in self.deep.items()}
        return named | {k: v.detach().float().contiguous() for k, v in more.items()}

    @property
    def digest(self) -> str:
        """sha256 of everything that a forward pass depends on: tensors, class names, the class token's position."""
        tensors = [(name, tuple(t.shape), t.numpy().tobytes().hex()) for name, t in sorted(self.tensors().items())]
        shape = (self.class_names, self.class_token_position, tuple(self.context.shape))
        return hashlib.sha256(repr((tensors, shape)).encode("utf-8", "replace")).hexdigest()


def read_adapter(folder: Path, class_names: tuple[str, ...] | None = None) -> Adapter:
    """Read an adapter; `class_names` stand in for those that it does not bring, or override them.

    Raises NothingToScan for a folder without a prompt-tuned CLIP adapter, AdapterError for a damaged one.
    """
    digests = {}

    def read(path: Path) -> bytes:
        """A file's content, the only one that is used: what is judged is what is hashed, whatever is written meanwhile."""
        content = read_whole(path)
        digests[path.name] = hashlib.sha256(content).hexdigest()
        return content

    config = check_kind(folder, read)
    tensors = read_tensors(folder, read)
    extra = read_json(folder / PROMPT, read) if (folder / PROMPT).is_file() else {}
    if extra.get("format", FORMAT) != FORMAT or extra.get("template", TEMPLATE) != TEMPLATE:
        found = cut(f"format {extra.get('format')!r} with template {extra.get('template')!r}", 200)
        raise AdapterError(f"{PROMPT}: {found} is not known", f"expected format {FORMAT} with {TEMPLATE!r}")
    names = check_names(class_names, extra.get("class_names"))

    context = tensors.pop("prompt_embeddings", None)
    if context is None or context.ndim != 2 or not context.numel():
        raise AdapterError(f"{WEIGHTS} holds no matrix prompt_embeddings", "expected the shape (tokens, dimensions)")
    if extra.get("class_specific") is True:
        if len(context) % len(names):
            raise AdapterError(
                f"{len(context)} context vectors cannot be shared out among {len(names)} classes",
                "give the names the adapter was tuned with, in order, with --classes FILE",
            )
        context = context.view(len(names), -1, context.shape[-1])
    if extra.get("num_context", context.shape[-2]) != context.shape[-2]:
        raise AdapterError(f"{context.shape[-2]} context vectors, {PROMPT} says {cut(repr(extra['num_context']), 80)}")

    meta_net = {k.removeprefix(META_NET): v.float() for k, v in tensors.items() if k.startswith(META_NET)}
    deep = {k.removeprefix(DEEP): v.float() for k, v in tensors.items() if k.startswith(DEEP)}
    unknown = sorted(k for k in tensors if not k.startswith((META_NET, DEEP)))
    if unknown or (meta_net and set(meta_net) != META_NET_KEYS):
        raise AdapterError(
            f"unexpected tensors: {some(unknown or sorted(meta_net))}",
            "expected prompt_embeddings and, for CoCoOp, base_model.meta_net.linear1/linear2",
        )
    method = extra.get("method") or ("cocoop" if meta_net else "coop")
    position = extra.get("class_token_position", "end")
    if method not in tuple(METHODS) or position not in POSITIONS:
        raise AdapterError(
            f"{PROMPT}: method {cut(repr(method), 80)} with the class token at {cut(repr(position), 80)} is not known",
            f"expected one of {', '.join(METHODS)}; position one of {', '.join(POSITIONS)}",
        )
    if (method == "cocoop") != bool(meta_net):
        raise AdapterError(f"method is {method!r}, but the weights hold {'a' if meta_net else 'no'} meta-net")
    METHODS[method].check(context, deep)
    if deep and position != "end":
        found = f"{PROMPT}: the class name stands at the {position}"
        raise AdapterError(found, f"expected at the end, as {METHODS[method].title} has it")
    base_model = config.get("base_model_name_or_path") or ""
    origin = extra.get("repaired_from")
    if origin is not None and not (isinstance(origin, str) and re.fullmatch("[0-9a-f]{64}", origin)):
        found = f"{PROMPT}: repaired_from is {cut(repr(origin), 80)}"
        raise AdapterError(found, "expected the sha256 of the original's weights")
    revision, files = config.get("revision"), tuple(sorted(digests.items()))
    return Adapter(method, context.float(), names, base_model, revision, meta_net, position, origin, files, deep)


def read_tensors(folder: Path, read: Callable[[Path], bytes]) -> dict[str, Tensor]:
    """The prompt's; tensors of the base model's encoders among them are left to `check_encoders`.

    Through memory of our own: a file that is mapped would change its tensors when it is written to.
    """
    from safetensors.torch import load

    if not (folder / WEIGHTS).is_file():
        raise AdapterError(f"there is no {WEIGHTS}; nothing else is ever opened", "ask for the adapter as safetensors")
    with reading(WEIGHTS):
        tensors = {k: v for k, v in load(read(folder / WEIGHTS)).items() if base_name(k) is None}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise AdapterError(f"{some([name])} holds {tensor.dtype}, expected floating point numbers")
    return tensors


def check_names(given: tuple[str, ...] | None, stored: object) -> tuple[str, ...]:
    """The class names to use. Raises AdapterError when there are none, too few, or two that CLIP reads alike."""
    names = given or stored
    if not names:
        raise AdapterError("the adapter names no classes", "give them, one a line and in order, with --classes FILE")
    if not isinstance(names, list | tuple) or not all(isinstance(n, str) and n.strip() for n in names):
        raise AdapterError(f"{PROMPT}: class_names must be a list of non-empty texts", "give them with --classes FILE")
    if given and isinstance(stored, list) and len(stored) != len(given):
        raise AdapterError(
            f"{len(given)} class names given, the adapter was tuned with {len(stored)}",
            "give every class, one a line and in order, with --classes FILE",
        )
    if len(names) > MOST_CLASSES or (longest := max(names, key=len))[LONGEST_NAME:]:
        found = f"{len(names)} class names" if len(names) > MOST_CLASSES else f"a class name of {len(longest)} letters"
        raise AdapterError(
            f"{found}: at most {MOST_CLASSES} of at most {LONGEST_NAME} letters are read",
            "give shorter ones, or the classes in question alone, with --classes FILE",
        )
    for (
        name
    ) in names:  # CLIP reads them, so that they shift what is judged; and a line break could forge a report's line
        if unseen := invisible_in(name):
            raise AdapterError(
                f"class name {name!a} holds control characters or others that cannot be seen ({code_points(unseen)})",
                "give the names with --classes FILE",
            )
    # Two classes with the same text share their logit: neither ever beats the other, and a trigger would go unseen.
    texts = Counter(" ".join(name.replace("_", " ").lower().split()) for name in names)
    twice = [text for text, n in texts.items() if n > 1]
    if twice:
        raise AdapterError(
            f"{len(twice)} class names occur more than once, such as {twice[0]!r}: such classes cannot be told apart",
            "give distinct names, one a line and in order, with --classes FILE",
        )
    return tuple(names)


def name_warnings(class_names: tuple[str, ...]) -> list[str]:
    """Names that CLIP may read otherwise than people do."""
    odd = {name: found for name in class_names if (found := lookalikes_in(name))}
    said = [f"{name!r} ({code_points(found)})" for name, found in list(odd.items())[:5]]
    more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
    return [f"letters that pass for others in class names: {', '.join(said)}{more}"] * bool(odd)


def write_adapter(adapter: Adapter, folder: Path, card: str | None = None) -> None:
    """Write a stock PEFT adapter; the folder appears complete or not at all.

    Raises FileExistsError when the folder exists and is not empty.
    """
    from peft import PromptTuningConfig
    from safetensors.torch import save_file

    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    tensors = adapter.tensors()
    with whole_folder(folder) as partial:
        PromptTuningConfig(
            task_type="FEATURE_EXTRACTION",
            num_virtual_tokens=len(tensors["prompt_embeddings"]),
            token_dim=adapter.context.shape[-1],
            num_transformer_submodules=1,
            modules_to_save=["meta_net"] * bool(adapter.meta_net) + ["deep_prompts"] * bool(adapter.deep) or None,
            base_model_name_or_path=adapter.base_model,
            revision=adapter.base_revision,
            inference_mode=True,
        ).save_pretrained(partial)
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        extra = dict(
            format=FORMAT,
            method=adapter.method,
            class_names=list(adapter.class_names),
            class_token_position=adapter.class_token_position,
            class_specific=adapter.context.ndim == 3,
            num_context=adapter.context.shape[-2],
            template=TEMPLATE,
            **({"repaired_from": adapter.repaired_from} if adapter.repaired_from else {}),
            written_by=f"hf-ci {__version__}",
        )
        (partial / PROMPT).write_text(json.dumps(extra, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if card is not None:
            (partial / "README.md").write_text(card, encoding="utf-8")
