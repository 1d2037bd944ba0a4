"""Export a speech codec to share: ``python -m worldmodel.experiments.speech release``."""

from pathlib import Path

from worldmodel.files import write_folder_atomically


def release(run: str, out: str) -> None:
    """Export a codec as a folder to share, without paths of this machine.

    Args:
        run: run folder of a speech VQ-VAE.
        out: folder to write; its name becomes the codec's name.
    """
    from worldmodel import checkpoint
    from worldmodel.experiments.speech.codec import SpeechCodec

    codec = SpeechCodec.load(run)
    steps = checkpoint.read_config(codec.run)["train"]["steps"]
    if codec.network.steps < steps:
        raise ValueError(f"{run} is at step {int(codec.network.steps)} of {steps}; finish its training first")
    with write_folder_atomically(Path(out)) as folder:
        checkpoint.export(codec.run, folder)
    print(f"wrote {out}: {', '.join(codec.speakers)}, {codec.rate} samples a second")
