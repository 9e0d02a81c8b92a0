"""Fuzz what reads foreign files, by coverage: python fuzz.py TARGET CORPUS_FOLDER [-runs=N] [-max_total_time=SECONDS].

Needs atheris, which is no dependency of the tests. What it finds goes into `test_properties.py` as an `example`.
"""

import sys
import warnings
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
with atheris.instrument_imports(include=["hf_ci", "pickletools", "torch._weights_only_unpickler", "markdown_it"]):
    import test_properties as of

CARDS = [(folder / "README.md").read_bytes() for folder in of.DEMOS.iterdir() if (folder / "README.md").is_file()]
SEEDS = {
    "card": (
        of.edit_card,
        [*CARDS, of.replace(b"# A card\n", of.SECTION), b"---\na: b\n---\n## Bias, Risks, and Limitations\n"],
    ),
    "config": (of.read_config, [of.SAMPLE.encode()]),
    "checkpoint": (of.read_checkpoint, of.CHECKPOINTS),
} | {name: (lambda content, name=name: of.read_files(of.GOOD | {name: content}), [of.GOOD[name]]) for name in of.GOOD}

warnings.simplefilter("ignore")
target, corpus, *rest = sys.argv[1:]
run, seeds = SEEDS[target]
Path(corpus).mkdir(parents=True, exist_ok=True)
for i, seed in enumerate(seeds):
    (Path(corpus) / f"seed-{i}").write_bytes(seed)
atheris.Setup([sys.argv[0], corpus, *rest], run)
atheris.Fuzz()
