"""``python -m worldmodel.train {vqvae,prior,pixelcnn}``."""

from worldmodel import config
from worldmodel.train.programs import pixelcnn, prior, vqvae

if __name__ == "__main__":
    config.run({"vqvae": vqvae, "prior": prior, "pixelcnn": pixelcnn})
