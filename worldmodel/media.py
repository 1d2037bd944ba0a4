"""Frames to files: GIF and MP4 films, PNG strips and grids."""

from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image

from worldmodel.files import check_file

FORMATS = (".gif", ".mp4", ".png")
LOOKED_AT = 16  # frames that the colours of a GIF are chosen from


def check(path: Path) -> None:
    """Refuse a name that :func:`write` could not write, before any work is done for it.

    Raises:
        ValueError: for another suffix than .gif, .mp4 or .png, or a path that no file can be written to.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path} must end in one of {', '.join(FORMATS)}")
    check_file(path)


def write(path: Path, frames: np.ndarray, fps: float = 8.75, scale: int = 3) -> None:
    """Write frames (T, H, W, 3) uint8 as a film, or as one strip where ``path`` ends in .png.

    Args:
        fps: frames a second; 8.75 is Doom's 35 tics at four a step.
        scale: each pixel becomes a square of this many.
    """
    check(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lower()
    if suffix == ".gif":
        _write_gif(path, frames, fps, scale)
        return
    frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    if suffix == ".png":
        iio.imwrite(path, grid(frames[None]))
    else:  # H.264 wants even sides
        even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
        iio.imwrite(path, even, fps=fps, codec="libx264", macro_block_size=1)


def grid(frames: np.ndarray) -> np.ndarray:
    """Rows of frames (R, N, H, W, 3) as one picture (R·H, N·W, 3)."""
    return np.concatenate([np.concatenate(list(row), axis=1) for row in frames], axis=0)


def _write_gif(path: Path, frames: np.ndarray, fps: float, scale: int) -> None:
    """A film of 256 colours, the same in all frames: choosing anew for each one costs more than to dream it."""
    looked_at = frames[:: -(-len(frames) // LOOKED_AT)]
    palette = Image.fromarray(looked_at.reshape(-1, *frames.shape[2:])).quantize(256)
    pictures = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    size = scale * frames.shape[2], scale * frames.shape[1]
    first, *others = (picture.resize(size, Image.Resampling.NEAREST) for picture in pictures)
    first.save(path, save_all=True, append_images=others, duration=1000 / fps, loop=0)
