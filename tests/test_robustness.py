"""Whatever a store, a run, a file, a flag or a call is given, it works or raises a documented error, soon."""

import contextlib
import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from envs.dream import DreamVectorEnv
from worldmodel import cli
from worldmodel.dream import dream
from worldmodel.episodes import __main__ as episodes
from worldmodel.episodes.collect import collect
from worldmodel.episodes.store import EpisodeStore
from worldmodel.evaluate import evaluate
from worldmodel.train.dynamics import dynamics
from worldmodel.train.vqvae import vqvae
from worldmodel.world_model import WorldModel

pytestmark = pytest.mark.slow
DOCUMENTED = (ValueError, OSError, KeyError)  # KeyError: an episode that a store does not have
quickly = settings(
    max_examples=60,
    deadline=20_000,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

numbers = st.one_of(
    st.integers(-3, 40),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from([2**31, 2**63, 10**15, -1, 0, 1e300]),
)
plain = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8))
values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(autouse=True)
def little_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kilobytes


@pytest.fixture
def copied(store, tmp_path):
    """A fresh copy of a store for each example."""
    count = iter(range(10**6))

    def copy() -> Path:
        return Path(
            shutil.copytree(store, tmp_path / str(next(count)), ignore=lambda folder, names: {"codes"} & {*names})
        )

    return copy


def places(tree, path=()):
    """The paths to all values in a tree of dictionaries and lists."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, inner in items:
        yield from places(inner, (*path, name))


def changed(tree, path, value):
    """The tree with another value at a place; no value at all for ``...``."""
    if not path:
        return value
    tree = tree.copy()
    if len(path) == 1 and value is ...:
        del tree[path[0]]
    else:
        tree[path[0]] = changed(tree[path[0]], path[1:], value)
    return tree


def damage(data, text: bytes) -> bytes:
    """A file with some bytes replaced, left out or added."""
    start = data.draw(st.integers(0, len(text)))
    length = data.draw(st.integers(0, 40))
    return text[:start] + data.draw(st.binary(max_size=12)) + text[start + length :]


def altered(data, tree):
    """The tree with any value at any place, or without what was there."""
    place = data.draw(st.sampled_from([*places(tree)]))
    return changed(tree, place, data.draw(values if not place else values | st.just(...)))


def use(path: Path) -> None:
    """Everything that is done with a store."""
    made = EpisodeStore(path)
    list(made.verify())
    for entry in made.entries:
        made.read(entry.number)
        made.observations(entry.number, 0, 1)
    episodes.info(str(path))
    made.append(EpisodeStore(path).read(made.entries[0].number)) if len(made) else None


@quickly
@given(data=st.data())
def test_a_store_with_any_value_in_its_schema_or_index_is_read_or_refused(data, copied):
    path = copied()
    if data.draw(st.booleans()):
        schema = json.loads((path / "store.json").read_text())
        (path / "store.json").write_text(json.dumps(altered(data, schema)))
    else:
        lines = (path / "index.jsonl").read_text().splitlines()
        number = data.draw(st.integers(0, len(lines) - 1))
        lines[number] = json.dumps(altered(data, json.loads(lines[number])))
        (path / "index.jsonl").write_text("\n".join(lines) + "\n")
    with contextlib.suppress(DOCUMENTED):
        use(path)


@quickly
@given(data=st.data())
def test_a_store_with_damaged_files_is_read_or_refused(data, copied):
    path = copied()
    file = data.draw(st.sampled_from(sorted(file for file in path.rglob("*") if file.is_file())))
    file.write_bytes(damage(data, file.read_bytes()))
    with contextlib.suppress(DOCUMENTED):
        use(path)


@quickly
@given(data=st.data())
def test_what_verify_calls_whole_can_be_read(data, copied):
    path = copied()
    lines = (path / "index.jsonl").read_text().splitlines()
    number = data.draw(st.integers(0, len(lines) - 1))
    entry = json.loads(lines[number])
    name = data.draw(st.sampled_from(sorted(entry)))
    lines[number] = json.dumps({**entry, name: data.draw(plain)})
    (path / "index.jsonl").write_text("\n".join(lines) + "\n")
    try:
        made = EpisodeStore(path)
    except ValueError:
        return
    for entry, problem in made.verify():
        if not problem:
            episode = made.read(entry.number)
            assert (len(episode), len(episode.observations)) == (entry.steps, entry.observations)


keys = st.sampled_from(
    ["observations", "frames", "actions", "rewards", "terminated", "truncated", "seed", "level", "x"]
)
any_array = st.one_of(
    arrays.arrays(
        st.sampled_from([np.uint8, np.int64, np.float64, np.bool_, "U3"]), arrays.array_shapes(min_dims=0, max_side=6)
    ),
    st.just(np.zeros((5, 40, 40, 3), np.uint8)),
    st.sampled_from([np.array([0, 1, 2**40, 1]), np.array([np.nan, 1.0, 1e300, 0.0]), np.array(True), np.zeros(4)]),
)
right = {
    "observations": np.zeros((5, 40, 40, 3), np.uint8),
    "actions": np.array([0, 1, 1, 0]),
    "rewards": np.zeros(4),
    "terminated": np.array(True),
    "truncated": np.array(False),
}


@quickly
@given(
    change=st.dictionaries(keys, any_array, max_size=2), left_out=st.sets(st.sampled_from(sorted(right)), max_size=1)
)
def test_an_npz_of_anything_is_imported_or_refused(change, left_out, tmp_path_factory):
    folder = tmp_path_factory.mktemp("npz")
    arrays = {name: array for name, array in {**right, **change}.items() if name not in left_out}
    np.savez(folder / "one.npz", **arrays)
    with contextlib.suppress(DOCUMENTED):
        episodes.import_(str(folder / "store"), str(folder))
        use(folder / "store")


@quickly
@given(data=st.data())
def test_a_run_with_any_value_in_its_configuration_loads_or_is_refused(data, world_run, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "world"
    shutil.copytree(
        world_run, run, ignore=lambda folder, names: {"pictures", "tensorboard", "train.safetensors"} & {*names}
    )
    path = run / data.draw(st.sampled_from(["config.yaml", "vqvae/config.yaml"]))
    tree = yaml.safe_load(path.read_text())
    part = data.draw(st.sampled_from(["model", "data", "kind", None]))
    place = data.draw(st.sampled_from([place for place in places(tree) if part is None or place[:1] == (part,)]))
    path.write_text(yaml.safe_dump(changed(tree, place, data.draw(values if not place else values | st.just(...)))))
    with contextlib.suppress(DOCUMENTED):
        world = WorldModel.load(run)
        frames = torch.zeros(1, 4, 24, 24, 3, dtype=torch.uint8)
        world.step(world.start(frames, np.zeros((1, 3), np.int64)), [0], np.zeros((1, 6, 6)))
        EpisodeStore(world.clips_folder)
        dream(world=str(run), action=str(world.action_names[0]), frames=1, context=4, out=str(run / "dream.gif"))


@quickly
@given(data=st.data())
def test_a_run_with_damaged_files_loads_or_is_refused(data, world_run, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "world"
    shutil.copytree(
        world_run, run, ignore=lambda folder, names: {"pictures", "tensorboard", "train.safetensors"} & {*names}
    )
    path = run / data.draw(st.sampled_from(["config.yaml", "model.safetensors", "vqvae/config.yaml"]))
    path.write_bytes(damage(data, path.read_bytes()))
    with contextlib.suppress(DOCUMENTED):
        WorldModel.load(run)


FLAGS = {
    "train vqvae": (
        vqvae,
        [
            "batch_size",
            "size",
            "workers",
            "train.steps",
            "train.threads",
            "model.hidden_channels",
            "model.data_variance",
        ],
    ),
    "train dynamics": (
        dynamics,
        [
            "batch_size",
            "seq_length",
            "model.num_layers",
            "model.num_heads",
            "model.context_length",
            "train.warmup_steps",
        ],
    ),
    "dream": (dream, ["frames", "context", "episode", "start", "seed", "temperature", "action", "actions", "out"]),
    "evaluate": (
        evaluate,
        ["frames", "clips", "length", "horizon", "drift_rollouts", "samples", "episodes", "objects", "threads"],
    ),
    "collect": (collect, ["frames", "episodes", "workers", "epsilon", "max_episode_steps", "seed", "policy", "env"]),
}
words = st.one_of(
    st.sampled_from(
        ["-1", "0", "nan", "inf", "-inf", "1e400", "x", "", "[]", "{}", "null", "true", "2**63", "--", "a:b"]
    ),
    st.integers(-(2**65), -1).map(str),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6),
)


@quickly
@given(data=st.data())
def test_a_flag_of_any_value_is_taken_or_refused_in_a_line(data, store, vqvae_run, world_run, tmp_path_factory, capsys):
    folder = tmp_path_factory.mktemp("flags")
    name = data.draw(st.sampled_from(sorted(FLAGS)))
    program, flags = FLAGS[name]
    flag, value = data.draw(st.sampled_from(flags)), data.draw(words)
    arguments = {
        "train vqvae": {
            "store": store,
            "run": folder / "run",
            "train.steps": "1",
            "batch_size": "2",
            "model.hidden_channels": "8",
        },
        "train dynamics": {
            **{"store": store, "vqvae": vqvae_run, "run": folder / "run", "train.steps": "1", "seq_length": "4"},
            **{
                "model.embed_dim": "8",
                "model.num_heads": "2",
                "model.num_layers": "1",
                "model.motion_channels": "8",
                "model.ar_channels": "8",
            },
        },
        "dream": {"world": world_run, "frames": "1", "action": "stay", "context": "4", "out": folder / "dream.gif"},
        "evaluate": {"store": store, "world": world_run, "out": folder / "file" / "out", "frames": "8"},
        "collect": {"store": folder / "store", "env": "tests.tiny_world:Tiny-v0", "episodes": "1"},
    }[name]
    if name == "evaluate":  # its door alone: what it measures takes long
        (folder / "file").touch()
    line = [f"--{key}={word}" for key, word in {**arguments, flag: value}.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        try:
            cli.run(program, line)
        except SystemExit as end:
            assert end.code in (1, 2)
    assert "Traceback" not in capsys.readouterr().err


shapes = arrays.array_shapes(min_dims=0, max_dims=5, max_side=7)
anything = st.one_of(
    arrays.arrays(st.sampled_from([np.int64, np.uint8, np.float32, np.bool_]), shapes),
    shapes.map(lambda shape: torch.zeros(shape, dtype=torch.int64)),
    st.lists(st.integers(-5, 5), max_size=4),
    st.lists(st.sampled_from(["left", "stay", "fly"]), max_size=4),
    plain,
)


@pytest.fixture(scope="module")
def world(world_run):
    return WorldModel.load(world_run)


@quickly
@given(frames=anything, actions=anything, taken=anything, noise=anything, temperature=numbers)
def test_a_world_model_takes_or_refuses_whatever_it_is_given(world, frames, actions, taken, noise, temperature):
    good = torch.zeros(2, 4, 24, 24, 3, dtype=torch.uint8)
    for begin in (lambda: world.start(frames, actions), lambda: world.start(good, actions)):
        try:
            begin()
        except (*DOCUMENTED, TypeError):
            pass
    state = world.start(good, torch.ones(2, 3, dtype=torch.int64))
    for step in (
        lambda: world.step(state, taken, torch.zeros(2, 6, 6)),
        lambda: world.step(state, [0, 1], noise),
        lambda: world.step(state, [0, 1], torch.zeros(2, 6, 6), temperature),
        lambda: world.imagine(state, taken),
        lambda: world.decode(taken),
        lambda: world.encode(frames),
    ):
        try:
            step()
        except (*DOCUMENTED, TypeError):
            pass
    world.step(state, [0, 1], torch.zeros(2, 6, 6))


@pytest.fixture(scope="module")
def dreams(world_run):
    return DreamVectorEnv(2, world=str(world_run), horizon=3)


@quickly
@given(calls=st.lists(st.tuples(st.booleans(), anything), max_size=4))
def test_a_vector_of_dreams_takes_or_refuses_whatever_it_is_given_and_goes_on(calls, dreams):
    dreams.reset(seed=0)
    for reset, value in calls:
        try:
            dreams.reset(seed=value) if reset else dreams.step(value)
        except (*DOCUMENTED, TypeError):
            pass
    assert dreams.single_observation_space.contains(dreams.step([0, 1])[0][0])


def test_a_run_goes_by_its_configuration_whatever_the_order_of_its_keys(world_run, tmp_path):
    shutil.copytree(world_run, tmp_path / "run")
    tree = yaml.safe_load((world_run / "config.yaml").read_text())
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(dict(reversed(tree.items())), sort_keys=False))
    assert WorldModel.load(tmp_path / "run").action_names == WorldModel.load(world_run).action_names
