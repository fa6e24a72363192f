"""What quantization changed: accuracy by class, cells of the confusion matrix, images on which two models disagree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from qat.report.record import FOLDER, ClassCount, Classes, Confusion, Disagreement

IMAGES = 24
CELLS = 20
PIXELS = 96  # longer side of a thumbnail


@torch.no_grad()
def record_classes(
    float_model: Callable[[Tensor], Tensor],
    int8_model: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    names: Sequence[str],
    run_dir: str | Path,
    *,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    examples: int = 10_000,
) -> Classes:
    """Compare two classifiers; thumbnails of the images that they are surest of and disagree on go to `record/images`.

    Args:
        float_model: images [N, 3, H, W] to logits [N, C].
        int8_model: the same of the artefact.
        batches: normalised images and labels.
        names: of the classes.
        run_dir: folder of the run.
        mean: that was subtracted from pixels of 0 to 1.
        std: that they were divided by.
        examples: how many images to compare at most.
    """
    cells: dict[str, Counter[tuple[int, int]]] = {"float": Counter(), "int8": Counter()}
    kept: list[tuple[float, int, Tensor, Disagreement]] = []  # how sure both are at least, most first
    count = disagreements = 0
    for x, y in batches:
        x, y = x[: examples - count], y[: examples - count]
        first, second = float_model(x).float().softmax(1).cpu(), int8_model(x).float().softmax(1).cpu()
        for name, p in (("float", first), ("int8", second)):
            cells[name].update(zip(y.tolist(), p.argmax(1).tolist(), strict=True))
        for i in (first.argmax(1) != second.argmax(1)).nonzero().flatten().tolist():
            disagreements += 1
            a, b = int(first[i].argmax()), int(second[i].argmax())
            said = Disagreement(
                file=f"{FOLDER}/images/{count + i}.png", label=names[int(y[i])],
                float_class=names[a], float_p=float(first[i, a]), int8_class=names[b], int8_p=float(second[i, b]),
            )  # fmt: skip
            kept.append((-min(said.float_p, said.int8_p), count + i, x[i], said))
        kept = sorted(kept, key=lambda one: one[:2])[:IMAGES]
        count += len(x)
        if count >= examples:
            break
    for _, _, image, said in kept:
        _save(image, mean, std, Path(run_dir) / said.file)
    return Classes(
        examples=count, disagreements=disagreements, images=tuple(said for *_, said in kept),
        classes=_by_class(cells, names), confusion=_changed(cells, names),
    )  # fmt: skip


def _by_class(cells: dict[str, Counter[tuple[int, int]]], names: Sequence[str]) -> tuple[ClassCount, ...]:
    total = Counter[int]()
    for (label, _), n in cells["float"].items():
        total[label] += n
    return tuple(
        ClassCount(name=name, count=total[c], float_correct=cells["float"][c, c], int8_correct=cells["int8"][c, c])
        for c, name in enumerate(names)
    )


def _changed(cells: dict[str, Counter[tuple[int, int]]], names: Sequence[str]) -> tuple[Confusion, ...]:
    """Cells off the diagonal whose count changed, most first."""
    before, after = cells["float"], cells["int8"]
    moved = [cell for cell in before | after if cell[0] != cell[1] and before[cell] != after[cell]]
    moved.sort(key=lambda cell: (-abs(after[cell] - before[cell]), cell))
    return tuple(
        Confusion(label=names[a], predicted=names[b], float_count=before[a, b], int8_count=after[a, b])
        for a, b in moved[:CELLS]
    )


def _save(image: Tensor, mean: Sequence[float], std: Sequence[float], path: Path) -> None:
    """A normalised image [C, H, W] as a PNG."""
    m, s = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
    pixels = (image.detach().cpu().float() * s + m).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
    picture = Image.fromarray(pixels[..., 0].numpy() if pixels.shape[-1] == 1 else pixels[..., :3].numpy())
    picture.thumbnail((PIXELS, PIXELS))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
