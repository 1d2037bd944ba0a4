"""Write frames as GIF and MP4 videos, PNG strips and grids."""

from itertools import pairwise
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image

from worldmodel.files import check_file

FORMATS = (".gif", ".mp4", ".png")
PALETTE_FRAMES = 16  # frames that the colors of a GIF are chosen from


def check_path(path: Path) -> None:
    """Check that :func:`write` can write to a path.

    Raises:
        ValueError: if the suffix is not .gif, .mp4 or .png, or no file can be written there.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path} must end in one of {', '.join(FORMATS)}")
    check_file(path)


def write(path: Path, frames: np.ndarray, fps: float = 8.75, scale: int = 3) -> None:
    """Write frames (T, H, W, 3) uint8 as a video, or as one strip if ``path`` ends in .png.

    Args:
        fps: frames per second; 8.75 is Doom's 35 tics per second at four tics per step.
        scale: side of the square that each pixel becomes.
    """
    check_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lower()
    if suffix == ".gif":
        _write_gif(path, frames, fps, scale)
        return
    frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    if suffix == ".png":
        iio.imwrite(path, tile(frames[None]))
    else:  # H.264 needs even sides
        even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
        iio.imwrite(path, even, fps=fps, codec="libx264", macro_block_size=1)


def tile(frames: np.ndarray) -> np.ndarray:
    """Tile rows of frames (R, N, H, W, 3) into one image (R·H, N·W, 3)."""
    return np.concatenate([np.concatenate(list(row), axis=1) for row in frames], axis=0)


def _write_gif(path: Path, frames: np.ndarray, fps: float, scale: int) -> None:
    """Write a GIF with one palette of 256 colors: a palette per frame would take longer than dreaming the frame."""
    sample = frames[:: -(-len(frames) // PALETTE_FRAMES)]
    palette = Image.fromarray(sample.reshape(-1, *frames.shape[2:])).quantize(256)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    size = scale * frames.shape[2], scale * frames.shape[1]
    first, *others = (image.resize(size, Image.Resampling.NEAREST) for image in images)
    first.save(path, save_all=True, append_images=others, duration=_gif_durations(len(images), fps), loop=0)


def _gif_durations(count: int, fps: float) -> list[int]:
    """Return how long each frame of a GIF is shown, in ms: hundredths of a second that add up to the rate.

    Viewers show durations below 20 ms more slowly, so that is the least.
    """
    times = [10 * round(100 * frame / fps) for frame in range(count + 1)]
    return [max(20, after - before) for before, after in pairwise(times)]
