"""``python -m worldmodel.train {vqvae,dynamics,heads,spatial_prior}``."""

from worldmodel import cli
from worldmodel.train.dynamics import dynamics
from worldmodel.train.heads import heads
from worldmodel.train.spatial_prior import spatial_prior
from worldmodel.train.vqvae import vqvae

if __name__ == "__main__":
    cli.run({"vqvae": vqvae, "dynamics": dynamics, "heads": heads, "spatial_prior": spatial_prior})
