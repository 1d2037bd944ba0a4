"""Every command of the README and the documentation runs, in the order in which it stands there, on small budgets."""

import os
import re
import runpy
import shlex
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import ray

from tests.conftest import tones
from tests.experiments.translation.tiny import write_corpus
from tests.images.test_array_files import write_cifar
from worldmodel.experiments.speech.data import audio
from worldmodel.experiments.speech.data.espeak import load_library
from worldmodel.shipped import shipped_worlds

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.engine]
ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LONG_PAGES = ("agents", "images", "results", "speech", "speed", "training", "translation")  # not run by .ci/run
if os.environ.get("WORLDMODEL_TEST_PAGES") == "core":
    PAGES = [page for page in PAGES if page.stem not in LONG_PAGES]

TRAIN = "--train.steps 1 --train.evaluate_every 1 --train.warmup_steps 1 --batch_size 2"
PRIOR = f"""{TRAIN} --seq_length 4 --model.embed_dim 24 --model.num_heads 2 --model.motion_channels 12
    --model.ar_channels 8 --model.ar_layers 2"""
VQVAE = f"{TRAIN} --model.hidden_channels 8 --model.residual_channels 8"
CODEC = f"""{TRAIN} --model.condition_channels 8 --model.decoder_channels 8 --model.decoder_layers 4
    --model.skip_channels 8 --model.hidden_channels 8"""
TEXT = """--train.steps 3 --train.evaluate_every 3 --train.warmup_steps 1 --batch_tokens 100"""
TINY = {"vocab_size": 300, "embed_dim": 16, "feed_forward_dim": 16, "encoder_layers": 1, "decoder_layers": 1}
AGENT = """--train.total_timesteps 64 --train.batch_size 64 --train.minibatch_size 32 --train.update_epochs 1
    --train.num_envs 4 --train.num_env_runners 0"""
SMALL = {  # what is said after a command, to have it done in seconds
    "worldmodel.dream": "",
    "worldmodel.collect": "--frames 0 --episodes 10 --max_episode_steps 24 --workers 0",
    "worldmodel.train vqvae": VQVAE,
    "worldmodel.train dynamics": PRIOR,
    "worldmodel.train spatial_prior": f"{TRAIN} --model.hidden_channels 8 --model.num_layers 2",
    "worldmodel.sample": "--grid 1x2",
    "worldmodel.evaluate": """--frames 8 --segments 4 --length 8 --clips 2 --samples 1 --horizon 4 --episodes 1
        --drift_rollouts 2 --drift_horizon 8 --objects 0 --pairs 64""",
    "worldmodel.benchmark": "--only codec --repeats 1 --device cpu",
    "worldmodel.experiments.quantizers": f"{VQVAE} --quantizers ema,loss --starts small --seeds 1 --parallel 1",
    "worldmodel.experiments.speech synthesize": "--count 4 --held_out 2",
    "worldmodel.experiments.speech train": f"""{CODEC} --train.steps 3
        --model.aux_only_steps 1 --model.quantizer.codebook_size 16""",
    "worldmodel.experiments.speech prior": f"{TRAIN} --seq_length 8 --model.hidden_channels 8 --model.num_layers 2",
    "worldmodel.experiments.speech sample": "--count 1 --codes 8",
    "worldmodel.experiments.speech evaluate": "--recordings 4",
    "worldmodel.experiments.translation train-teacher": " ".join(
        [TEXT, *(f"--model.{name} {size}" for name, size in TINY.items())]
    ),
    "worldmodel.experiments.translation train": " ".join(
        [TEXT, *(f"--model.transformer.{name} {size}" for name, size in TINY.items())]
    )
    + """ --model.predictor_layers 1 --model.quantizer.codebook_size 16 --model.quantizer.code_dim 16
        --model.quantizer_warmup_steps 1 --model.predictor_warmup_steps 1""",
    "worldmodel.play": "--open_browser true",
    "agents.train": f"""{AGENT} --train.evaluate_every 0 --train.num_gpus 0 --env.device cpu --env.horizon 8
        --env.starts_near_termination 0""",
    "agents.train --loop": f"""--rounds 1 --collect.first_episodes 3 --collect.max_episode_steps 16
        --vqvae.train.steps 1 --vqvae.batch_size 2
        --dynamics.train.steps 1 --dynamics.seq_length 4 --agent.evaluation_episodes 1 --agent.env_kwargs.horizon 8
        --agent.env_kwargs.starts_near_termination 0
        {AGENT.replace("--train", "--agent.train")} --agent.train.evaluate_every 0""",
    "agents.evaluate": "--episodes 1 --horizon 5",
}
MORE = {
    "1000": "--frames 12",
    "--no_context_prior": "--world runs/doom-own",
}  # the baseline is that of another world on the page
EARLIER = {  # runs that a page takes for made, and how
    "runs/doom-blind": "python -m worldmodel.train dynamics --store stores/doom --vqvae runs/doom-vqvae "
    "--run runs/doom-blind --model.context_length 0",
}
COPIES = {  # and those that stand for others
    "stores/seekavoid": "stores/doom",
    "stores/nav-maze": "stores/doom",
    "runs/take-cover-vqvae": "runs/doom-vqvae",
    "runs/doom128-pixelcnn": "runs/cifar10-pixelcnn",
}


def commands() -> list[str]:
    """All that a reader could copy: lines of blocks, and inline ones that are whole; a page's own order."""
    found = []
    for page in PAGES:
        blocks = re.split(r"^```\w*$", page.read_text("utf-8"), flags=re.MULTILINE)
        for number, text in enumerate(blocks):
            if number % 2:
                lines = [line for line in text.splitlines() if line.startswith("python -m ")]
            else:
                lines = [" ".join(line.split()) for line in re.findall(r"`(python -m [^`]* --[^`]*)`", text)]
            found += [line for line in lines if not re.search(r"…|\b[A-Z]{3,}\b", line)]
    # it measures recordings that only those who trained these voices have; here, the voices that are trained below
    last = [line.replace("spoken-digits", "runs/fsdd") for line in found if "spoken-digits" in line]
    return list(dict.fromkeys([*(line for line in found if "spoken-digits" not in line), *last]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a reader works: a clone's configurations, and data that are here in miniature."""
    path = tmp_path_factory.mktemp("reader")
    (path / "configs").symlink_to(ROOT / "configs")
    write_cifar(path / "data" / "cifar-10-batches-py")
    names = path / "data" / "cifar-10-batches-py" / "batches.meta"
    names.unlink()  # so that they are CIFAR-10's own
    for corpus in ("speech", "timit"):
        tones(path / "data" / corpus)
    for digit in range(2):
        for speaker, pitch in (("george", 200), ("theo", 400)):
            for number in range(8):
                time = np.arange(3000 + 100 * number) / 8000
                wave = 0.5 * np.sin(2 * np.pi * pitch * (1 + digit * time) * time)
                audio.save(path / "data" / "fsdd" / "recordings" / f"{digit}_{speaker}_{number}.wav", wave, 8000)
    write_corpus(path / "data" / "multi30k")
    audio.save(path / "a.wav", 0.5 * np.sin(np.arange(4000) / 10), 8000)
    return path


def run(command: str) -> None:
    """Run a command as a shell does, in this process, which has the imports behind it."""
    _, _, module, *rest = shlex.split(command)
    named = [name for name in (f"{module} {rest[0]}" if rest else "", module) if name in SMALL]
    more = [text for word, text in MORE.items() if word in rest] + [SMALL[name] for name in named[:1]]
    if "--init" in rest and rest[rest.index("--init") + 1] in shipped_worlds():  # whose sizes stay
        more = [f"{TRAIN} --seq_length 4"]
    arguments = [*rest, *" ".join(more).split()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *arguments])
        # the page is up: enough of worldmodel.play
        patch.setattr("webbrowser.open", lambda address: os.kill(os.getpid(), signal.SIGTERM))
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            assert end.code in (None, 0, 128 + signal.SIGTERM), end.code


SNIPPETS = [
    snippet for page in PAGES for snippet in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
]


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
@pytest.mark.filterwarnings("ignore")
def test_python_that_a_page_shows_runs(snippet, folder, monkeypatch):
    monkeypatch.chdir(folder)
    try:
        exec(snippet, {})
    finally:
        ray.shutdown()  # RLlib starts it


@pytest.mark.parametrize("command", commands())
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_a_command_that_a_page_shows_runs(command, folder, monkeypatch):
    if " synthesize " in command:
        try:
            load_library()
        except ImportError:
            pytest.skip("needs espeak-ng's library, which pip does not bring: apt install espeak-ng")
    monkeypatch.chdir(folder)
    for copy, origin in COPIES.items():
        if copy in command and not Path(copy).exists():
            shutil.copytree(origin, copy)
    for made, earlier in EARLIER.items():
        if made in command and not Path(made).exists():
            run(earlier)
    run(command)
