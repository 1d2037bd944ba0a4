"""Generated images: a spatial prior samples their codes and the VQ-VAE under it decodes them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from worldmodel import checkpoint
from worldmodel.checks import check_seed, check_temperature
from worldmodel.models.precision import check_device
from worldmodel.models.spatial_prior import SpatialPrior
from worldmodel.models.vqvae import VQVAE
from worldmodel.suggest import unknown_name

BATCH_SIZES = {"cpu": 16, "cuda": 256}  # images sampled together, by device type


class ImageGenerator:
    """A VQ-VAE and the spatial prior over its codes.

    Args:
        classes: names of labels 0, 1, …; empty for an unconditional prior.
    """

    def __init__(self, vqvae: VQVAE, prior: SpatialPrior, classes: Sequence[str]) -> None:
        self.vqvae, self.prior, self.classes = vqvae, prior, tuple(classes)

    @classmethod
    def load(cls, run: str | Path, device: str | torch.device = "cpu") -> "ImageGenerator":
        """Load a run of ``worldmodel.train spatial_prior``.

        Raises:
            FileNotFoundError: if a file of the run is missing.
            ValueError: if a file is damaged, or the run is of another kind.
        """
        run, device = Path(run), check_device(device)
        prior = checkpoint.load_spatial_prior(run).to(device)
        vqvae = checkpoint.load_vqvae(run / "vqvae").to(device)
        return cls(vqvae, prior, checkpoint.read_config(run)["data"]["classes"])

    def make_labels(self, rows: int, columns: int, class_name: str = "") -> Tensor:
        """Return labels (rows·columns,) for a sheet of images: all of one class, or by default one class per row.

        Raises:
            ValueError: if there is no such class.
        """
        if class_name and not self.classes:
            raise ValueError(
                f"the images that this prior was trained on have no classes, got {class_name!r}; name none"
            )
        if class_name and class_name not in self.classes:
            raise ValueError(unknown_name("class", class_name, self.classes))
        each = torch.arange(rows) % max(1, len(self.classes))
        return (torch.full((rows,), self.classes.index(class_name)) if class_name else each).repeat_interleave(columns)

    @torch.no_grad()
    def generate(self, labels: Tensor, seed: int = 0, temperature: float = 1.0, progress: bool = False) -> Tensor:
        """Generate an image for each label.

        Args:
            labels: (N,) int64; any numbers if there are no classes.
            seed: random seed of image 0; image n has a generator of its own, seeded with ``seed + n``.
            temperature: sampling temperature of the codes; 0 always takes the most probable code.
            progress: show a progress bar.

        Returns:
            (N, H, W, 3) uint8, on the CPU.

        Raises:
            ValueError: if the temperature is negative, or there is no such class.
        """
        check_temperature(temperature)
        check_seed(seed)
        device, grid = next(self.prior.parameters()).device, self.prior.config.grid
        batch_size, images = BATCH_SIZES.get(device.type, BATCH_SIZES["cuda"]), []
        with tqdm(total=len(labels), unit="image", desc="sample", leave=False, disable=not progress) as bar:
            for indices in torch.arange(len(labels)).split(batch_size):
                generators = [torch.Generator().manual_seed(seed + index) for index in indices.tolist()]
                uniforms = torch.stack([torch.rand(grid, generator=generator) for generator in generators])
                codes = self.prior.sample(labels[indices].to(device), uniforms.to(device), temperature)
                images.append(self.vqvae.decode(codes).cpu())
                bar.update(len(indices))
        return torch.cat(images)
