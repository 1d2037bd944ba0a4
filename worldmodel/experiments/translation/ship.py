"""Export a translator to share: ``python -m worldmodel.experiments.translation ship``."""

from pathlib import Path

from worldmodel.files import write_folder_atomically


def ship(run: str, out: str) -> None:
    """Export a translation model as a folder to share, in float16, without paths of this machine.

    Args:
        run: run folder of a translation model.
        out: folder to write; its name becomes the translator's name.
    """
    from worldmodel import checkpoint
    from worldmodel.experiments.translation.translator import Translator

    translator = Translator.load(run)
    with write_folder_atomically(Path(out)) as folder:
        checkpoint.export(translator.run, folder, half="")
        translator.subwords.save(folder)
    size = sum(path.stat().st_size for path in Path(out).iterdir())
    print(f"wrote {out}: {size / 1e6:.1f} MB, {checkpoint.read_config(Path(out))['data']['languages']}")
