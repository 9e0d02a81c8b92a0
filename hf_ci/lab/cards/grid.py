"""True and recovered triggers as one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from hf_ci.lab.benchmarks.bench import Spec, scan_options
from hf_ci.lab.making.triggers import read_trigger
from hf_ci.lab.making.zoo import CLEAN, Zoo
from hf_ci.progress import Silent
from hf_ci.reports.trigger import amplified
from hf_ci.scan import Run, examine

CELL, GAP, LABEL = 96, 6, 160
COLUMNS = ("a test photo", "with the trigger", "what it changes", "recovered")


def draw(spec: Spec, data_root: Path, out: Path, zoo: Path, group: str) -> int:
    """A row a poisoned model: a test photo, the same with the trigger, the change, and the change that a scan recovers.

    Changes are amplified until the largest fills the range, grey being none. Returns the number of rows.
    """
    known = Zoo(zoo, data_root)
    (chosen,) = spec.chosen([group])
    models = [model for model in chosen.models if model.attack != CLEAN]
    run = Run(scan_options(spec, chosen, data_root, zoo, "cpu"), Silent())
    picture = Image.new("RGB", (LABEL + len(COLUMNS) * (CELL + GAP), 24 + len(models) * (CELL + GAP)), "white")
    pen = ImageDraw.Draw(picture)
    for column, text in enumerate(COLUMNS):
        pen.text((LABEL + column * (CELL + GAP), 6), text, fill="black")
    for row, model in enumerate(models):
        folder, facts = known.get(model)
        bench = known.bench(model)
        photo = bench.test.images[0].float() / 255  # (3, H, W)
        with torch.no_grad():
            triggered = read_trigger(folder)(photo[None])[0]
        _, examined = examine(str(folder), run)
        top = 24 + row * (CELL + GAP)
        lines = (f"{facts['data']}, {facts['attack']}", f"into {facts['target_name']}", f"ASR {facts['asr']:.0%}")
        pen.multiline_text((6, top + 24), "\n".join(lines), fill="black")
        cells = [pixels(photo), pixels(triggered), amplified((triggered - photo).numpy())]
        if examined is not None:
            cells.append(amplified(examined.inversions[facts["target"]].delta.numpy()))
        for column, cell in enumerate(cells):
            place = (LABEL + column * (CELL + GAP), top)
            picture.paste(Image.fromarray(cell).resize((CELL, CELL), Image.Resampling.NEAREST), place)
    picture.save(out, optimize=True)
    return len(models)


def pixels(x: Tensor) -> np.ndarray:
    return x.mul(255).round().byte().permute(1, 2, 0).numpy()
