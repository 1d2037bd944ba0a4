"""Draw pictures that nobody took: ``python -m worldmodel.sample --run runs/cifar10-pixelcnn --label cat``."""

import re
import time
from pathlib import Path

import torch

from worldmodel import config, media
from worldmodel.files import free
from worldmodel.images.generator import Painter


def sample(
    run: str,
    label: str = "",
    grid: str = "8x8",
    temperature: float = 1.0,
    seed: int = 0,
    scale: int = 1,
    out: str = "",
    device: str = "cpu",
) -> None:
    """Draw a sheet of pictures from a spatial prior.

    Args:
        run: folder of a run of worldmodel.train pixelcnn.
        label: a class that all pictures are of; a row of each class in turn if not given.
        grid: rows x columns.
        temperature: above 1 is wilder, below 1 is calmer, 0 takes the likeliest code everywhere.
        seed: the same one gives the same pictures; picture n of seed s is picture n - 1 of seed s + 1.
        scale: each pixel becomes a square of this many.
        out: file to write, .png; by default samples.png, samples-2.png, …, the first that is free.
        device: cpu or cuda.
    """
    sides = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", grid)
    if not sides:
        raise ValueError(f"--grid must be rows x columns such as 8x8, got {grid}")
    target = Path(out) if out else free(Path("samples.png"))
    if target.suffix.lower() != ".png":
        raise ValueError(f"--out must end in .png, got {out}")
    media.check(target)
    if scale < 1:
        raise ValueError(f"--scale must be 1 or more, got {scale}")
    torch.set_num_threads(1)  # many small steps: more threads only wait for each other
    rows, columns = map(int, sides.groups())
    painter = Painter.load(run, device)
    labels = painter.labels(rows, columns, label)
    clock, unit = (time.process_time, "CPU time") if device == "cpu" else (time.perf_counter, "time")
    began = clock()
    pictures = painter.paint(labels, seed, temperature, progress=True)
    rate = len(pictures) / (clock() - began)
    sheet = media.grid(pictures.unflatten(0, (rows, columns)).numpy())
    media.write(target, sheet[None], scale=scale)
    names = [painter.classes[number] for number in labels[::columns].tolist()] if painter.classes else []
    told = f", from the top: {', '.join(names)}" if names and not label else ""
    print(f"wrote {target}: {len(pictures)} pictures, {rate:.2f} a second of {unit}{told}")


if __name__ == "__main__":
    config.run(sample)
