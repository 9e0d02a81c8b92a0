"""A checkpoint and its base model -> `Adapter`. What neither tells is asked for, never guessed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hf_ci.certain import certain
from hf_ci.checkpoints.layout import Checkpoint, recognise
from hf_ci.checkpoints.names import TokenTable, is_base_of, name_of, name_tokens, spells
from hf_ci.checkpoints.unpickle import unpickle
from hf_ci.checkpoints.whole import TEXT_POSITIONS, check_whole, is_base_of_whole
from hf_ci.errors import AdapterError, Inconclusive
from hf_ci.hub import BaseModel, Fetched, named_base
from hf_ci.hub.base import EMBEDDED
from hf_ci.kind import POSITIONS
from hf_ci.prompts.adapter import Adapter, check_names, read_adapter
from hf_ci.prompts.clip import FrozenCLIP
from hf_ci.prompts.methods import METHODS
from hf_ci.prompts.prompted import hand_written
from hf_ci.settings import ScanOptions

ASK_NAMES = "give the class names, one a line and in the order of training, with --classes FILE"
ASK_POSITION = f"say where the class name stands with --position {'|'.join(POSITIONS)} (CoOp's default is end)"


class Asked(Protocol):
    """What is read by: an `hf_ci.scan.Run`."""

    options: ScanOptions
    class_names: tuple[str, ...] | None
    fetch_base: Callable[[str, str | None], BaseModel]

    @property
    def clip(self) -> Callable[[Path], FrozenCLIP]: ...


def read_fetched(fetched: Fetched, run: Asked) -> tuple[Adapter, list[str]]:
    """The adapter that a target holds, of whichever kind, and remarks on it."""
    if fetched.checkpoint is None:
        return read_adapter(fetched.folder, run.class_names), []
    told = run.options.base, run.class_names, run.options.position
    adapter, remarks = read_checkpoint(fetched.folder, fetched.checkpoint, run.fetch_base, run.clip, *told)
    return adapter, [*remarks, *fetched.remarks]


def read_checkpoint(
    folder: Path,
    file: str,
    fetch_base: Callable[[str, str | None], BaseModel],
    load_clip: Callable[[Path], FrozenCLIP],
    base: str | None = None,
    class_names: tuple[str, ...] | None = None,
    position: str | None = None,
) -> tuple[Adapter, list[str]]:
    """The adapter in `folder`/`file`, and remarks on how it was read.

    base, class_names, position: what the user says; wherever the file tells it, too, both have to agree. Raises
    NothingToScan for a file that holds no prompt, Inconclusive for one that may not be read or cannot be scanned, and
    AdapterError for a damaged one, where something is missing, and where something that was said cannot be.
    """
    try:
        content = (folder / file).read_bytes()
    except OSError as error:
        raise AdapterError(f"{file} cannot be read: {error.strerror or error}") from error
    name = Path(file).name
    checkpoint = recognise(unpickle(content, name), name)
    remarks = [f"read from a pickle, {file}, without running anything in it; the usual way to load it would"]
    if checkpoint.trigger:
        remarks.append(
            f"{file} holds a learnt trigger beside the prompt, {checkpoint.trigger}, as BAPLe's attack saves it"
        )

    may_be = base_for(checkpoint, file, base, fetch_base, load_clip)
    check_told(checkpoint, file, may_be, class_names, position)
    found = certain(may_be)
    if checkpoint.encoders:
        remarks.append(check_whole(checkpoint.encoders, found.base.folder, checkpoint.averaged))
    elif checkpoint.prefix is None:
        remarks.append(f"that it was tuned on {found.base.id} is taken on trust: nothing in {file} tells")
        if not found.clip.start:
            remarks.append(f"{found.base.id} has no start token, so the context was taken to come first, also on trust")
    names = names_for(checkpoint, class_names, found)
    placed = position_for(checkpoint, position, file)
    digest = hashlib.sha256(content).hexdigest()
    method, context = METHODS[checkpoint.method], checkpoint.context
    if context is None:
        context = hand_written(found.clip, certain(method.words)).cpu()
    method.check(context, checkpoint.deep)
    adapter = Adapter(
        checkpoint.method,
        context,
        names,
        found.base.id,
        found.base.revision,
        checkpoint.meta_net,
        placed,
        files=((file, digest),),
        deep=checkpoint.deep,
    )
    return adapter, remarks


@dataclass(frozen=True)
class Found:
    """The base model, its tokenizer and text tower, and its tokens' embeddings."""

    base: BaseModel
    clip: FrozenCLIP
    table: TokenTable


def base_for(
    checkpoint: Checkpoint,
    file: str,
    named: str | None,
    fetch_base: Callable[[str, str | None], BaseModel],
    load_clip: Callable[[Path], FrozenCLIP],
) -> Found | None:
    """The base model that was named, or the embedded one where token_prefix is its start token, or where there is none the
    encoders' positions its own; None where neither is.

    Raises AdapterError where the one that was named has another start token.
    """
    if named is None and checkpoint.prefix is None and not checkpoint.encoders:
        return None
    base = fetch_base(*(named_base("", None, named) if named else (EMBEDDED, None)))
    found = Found(base, load_clip(base.folder), TokenTable(base.folder))
    if checkpoint.prefix is None:
        return found if named or is_base_of_whole(checkpoint.encoders, base.folder) else None
    if not found.clip.start:
        raise AdapterError(
            f"{file} holds a start token (token_prefix), which {base.id} has not: how it was tuned on that is not known",
            "name the CLIP that it was tuned on with --base",
        )
    if is_base_of(found.table, checkpoint.prefix, found.clip.start[0], checkpoint.averaged):
        return found
    if named is None:
        return None
    raise AdapterError(
        f"{file} was not tuned on {base.id}: its token_prefix is not that model's start token", ask_base(checkpoint)
    )


def ask_base(checkpoint: Checkpoint) -> str:
    vectors = checkpoint.encoders.get(TEXT_POSITIONS) if checkpoint.context is None else checkpoint.context
    if vectors is None:
        return "name the CLIP with --base"
    d, usual = vectors.shape[-1], {512: ", as those of ViT-B and ResNet-50", 768: ", as that of ViT-L/14"}
    return f"name the CLIP with --base; its text tower has {d} dimensions{usual.get(d, '')}"


def check_told(
    checkpoint: Checkpoint, file: str, found: Found | None, class_names: tuple[str, ...] | None, position: str | None
) -> None:
    """Raises AdapterError that names everything that neither the file nor the user tells."""
    named = class_names or checkpoint.class_names or checkpoint.suffix is not None
    asked = [
        (found is None, "which CLIP it was tuned on", ask_base(checkpoint)),
        (not named, "the class names", ASK_NAMES),
        (not (position or checkpoint.position), "where the class name stands in the prompt", ASK_POSITION),
    ]
    lacking = [(what, ask) for lacks, what, ask in asked if lacks]
    if lacking:
        raise AdapterError(
            f"{file} does not tell {', nor '.join(what for what, _ in lacking)}", "; ".join(ask for _, ask in lacking)
        )


def names_for(checkpoint: Checkpoint, given: tuple[str, ...] | None, found: Found) -> tuple[str, ...]:
    """The class names in order: those given, or in the file, or recovered from the tokens, which all have to agree."""
    if checkpoint.suffix is None:
        return check_names(given, checkpoint.class_names and list(checkpoint.class_names))
    clip = found.clip
    tokens = name_tokens(checkpoint.suffix, found.table, clip, found.base.id, checkpoint.averaged)
    recovered = tuple(name_of(each, clip) for each in tokens)
    named = given or checkpoint.class_names
    if named:
        if len(named) != len(tokens):
            raise AdapterError(f"{len(named)} class names given, the prompt was tuned with {len(tokens)}", ASK_NAMES)
        for c, (name, each) in enumerate(zip(named, tokens)):
            if not spells(name, each, clip):
                held = recovered[c] or clip.tokenizer.decode(list(each))
                raise AdapterError(f"class {c} is {held!r} in the checkpoint, {name!r} is given", ASK_NAMES)
        return check_names(named, None)
    if None in recovered:
        c = recovered.index(None)
        raise AdapterError(
            f"class {c} reads {clip.tokenizer.decode(list(tokens[c]))!r}, which is no 'name.'", ASK_NAMES
        )
    return check_names(tuple(map(certain, recovered)), None)


def position_for(checkpoint: Checkpoint, given: str | None, file: str) -> str:
    """Where the class name stands. Raises AdapterError where it is said to stand elsewhere than it does."""
    known = checkpoint.position
    if known and given and known != given:
        raise AdapterError(f"{file}: the class name stands at the {known} of the prompt, --position says {given}")
    if (placed := given or known) not in POSITIONS:
        raise Inconclusive(f"{file}: the class name stands at {placed!r}", f"expected one of {', '.join(POSITIONS)}")
    return placed
