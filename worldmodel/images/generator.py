"""Pictures that nobody took: a spatial prior draws their codes, the VQ-VAE under it decodes them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from worldmodel import checkpoint
from worldmodel.checks import check_seed
from worldmodel.models.autoregressive.sampling import check_temperature
from worldmodel.models.spatial_prior import SpatialPrior
from worldmodel.models.vqvae import VQVAE
from worldmodel.suggest import unknown

PARTS = {"cpu": 16, "cuda": 256}  # pictures at once


class Painter:
    """A VQ-VAE and the spatial prior over its codes.

    Args:
        classes: what labels 0, 1, … are called; empty for a prior that knows none.
    """

    def __init__(self, vqvae: VQVAE, prior: SpatialPrior, classes: Sequence[str]) -> None:
        self.vqvae, self.prior, self.classes = vqvae, prior, tuple(classes)

    @classmethod
    def load(cls, run: str | Path, device: str | torch.device = "cpu") -> "Painter":
        """That of a run of ``worldmodel.train pixelcnn``.

        Raises:
            FileNotFoundError: if a file of it is missing.
            ValueError: if one is damaged, or it is a run of another kind.
        """
        run, device = Path(run), checkpoint.check_device(device)
        prior = checkpoint.load_spatial(run).to(device)
        vqvae = checkpoint.load_vqvae(run / "vqvae").to(device)
        return cls(vqvae, prior, checkpoint.read_config(run)["data"]["classes"])

    def labels(self, rows: int, columns: int, name: str = "") -> Tensor:
        """The classes (rows·columns,) of a sheet of pictures: all of one, or if none is named a row of each in turn.

        Raises:
            ValueError: for a class that there is not.
        """
        if name and not self.classes:
            raise ValueError(f"the pictures that this prior learnt from have no classes, got {name!r}; name none")
        if name and name not in self.classes:
            raise ValueError(unknown("class", name, self.classes))
        each = torch.arange(rows) % max(1, len(self.classes))
        return (torch.full((rows,), self.classes.index(name)) if name else each).repeat_interleave(columns)

    @torch.no_grad()
    def paint(self, labels: Tensor, seed: int = 0, temperature: float = 1.0, progress: bool = False) -> Tensor:
        """Draw a picture for each label.

        Args:
            labels: (N,) int64; any numbers if there are no classes.
            seed: picture n draws from a generator of its own, seeded with ``seed + n``.
            temperature: of the codes; below 1 is calmer, 0 takes the likeliest.
            progress: show a bar.

        Returns:
            (N, H, W, 3) uint8, on the CPU.

        Raises:
            ValueError: if the temperature is negative, or there is no such class.
        """
        check_temperature(temperature)
        check_seed(seed)
        device, grid = next(self.prior.parameters()).device, self.prior.config.grid
        numbers, size, pictures = torch.arange(len(labels)), PARTS.get(device.type, PARTS["cuda"]), []
        with tqdm(total=len(labels), unit="picture", desc="sample", leave=False, disable=not progress) as bar:
            for part in numbers.split(size):
                generators = [torch.Generator().manual_seed(seed + number) for number in part.tolist()]
                uniforms = torch.stack([torch.rand(grid, generator=generator) for generator in generators])
                codes = self.prior.sample(labels[part].to(device), uniforms.to(device), temperature)
                pictures.append(self.vqvae.decode(codes).cpu())
                bar.update(len(part))
        return torch.cat(pictures)
