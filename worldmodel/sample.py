"""Sample images from a spatial prior: ``python -m worldmodel.sample --run runs/cifar10-pixelcnn --label cat``."""

import re
import time
from pathlib import Path

from worldmodel import cli, media
from worldmodel.files import unused_path


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
    """Sample a grid of images from a spatial prior and write it as a PNG file.

    Args:
        run: run folder of a spatial prior.
        label: class of all images; if empty, each row shows the next class.
        grid: size of the image grid, rows x columns.
        temperature: sampling temperature, 0 or more; 0 always takes the most probable code.
        seed: random seed of the first image; image n, counted from 0, has seed + n.
        scale: side in pixels of the square that each image pixel becomes.
        out: PNG file to write; by default the first unused name of samples.png, samples-2.png, ….
        device: sampling device, cpu or cuda.
    """
    import torch

    from worldmodel.images.generator import ImageGenerator

    sides = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", grid)
    if not sides:
        raise ValueError(f"--grid must be rows x columns such as 8x8, got {grid}")
    target = Path(out) if out else unused_path(Path("samples.png"))
    if target.suffix.lower() != ".png":
        raise ValueError(f"--out must end in .png, got {out}")
    media.check_path(target)
    if scale < 1:
        raise ValueError(f"--scale must be 1 or more, got {scale}")
    torch.set_num_threads(1)  # the steps are too small to share among threads
    rows, columns = map(int, sides.groups())
    generator = ImageGenerator.load(run, device)
    labels = generator.make_labels(rows, columns, label)
    clock, unit = (time.process_time, "CPU time") if device == "cpu" else (time.perf_counter, "time")
    started = clock()
    images = generator.generate(labels, seed, temperature, progress=True)
    rate = len(images) / (clock() - started)
    sheet = media.tile(images.unflatten(0, (rows, columns)).numpy())
    media.write(target, sheet[None], scale=scale)
    row_classes = [generator.classes[index] for index in labels[::columns].tolist()] if generator.classes else []
    legend = f", from the top: {', '.join(row_classes)}" if row_classes and not label else ""
    print(f"wrote {target}: {len(images)} images, {rate:.2f} images/s of {unit}{legend}")


if __name__ == "__main__":
    cli.run(sample)
