"""Export a translator to share: ``python -m worldmodel.experiments.translation release``."""

from pathlib import Path

from worldmodel.files import write_folder_atomically


def release(run: str, out: str) -> None:
    """Export a translation model as a folder to share, in float16, without paths of this machine.

    Args:
        run: run folder of a translation model.
        out: folder to write; its name becomes the translator's name.
    """
    from worldmodel import checkpoint, tensor_io
    from worldmodel.experiments.translation.translator import Translator

    translator = Translator.load(run)
    steps, state = checkpoint.read_config(translator.run)["train"]["steps"], translator.run / "train.safetensors"
    if state.exists() and (done := tensor_io.read_step(state)) < steps:
        raise ValueError(f"{run} is at step {done} of {steps}; finish its training first")
    with write_folder_atomically(Path(out)) as folder:
        checkpoint.export(translator.run, folder, half="")
        translator.subwords.save(folder)
    size = sum(path.stat().st_size for path in Path(out).iterdir())
    print(f"wrote {out}: {size / 1e6:.1f} MB, {checkpoint.read_config(Path(out))['data']['languages']}")
