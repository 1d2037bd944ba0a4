"""The ids under which Gymnasium knows the environments of this package."""

import inspect
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest

import envs  # noqa: F401
from envs.dream import DreamEnv, DreamVectorEnv
from worldmodel import env_wrappers

NAMES = ("Doom-v0", "Lab-v0", "Dream-v0", "Encoded-v0")


@pytest.mark.parametrize("name", NAMES)
def test_an_id_in_the_namespace_is_the_same_environment(name):
    old, new = gym.spec(name), gym.spec(f"worldmodel/{name}")
    assert (old.entry_point, old.vector_entry_point) == (new.entry_point, new.vector_entry_point)


@pytest.mark.parametrize("env", ["envs:Dream-v0", "envs:worldmodel/Dream-v0", "worldmodel/Dream-v0"])
def test_ids_with_and_without_namespace_make_dreams_and_vectors_of_dreams(env, world_run):
    settings = {"world": str(world_run), "horizon": 3}
    dream = gym.make(env, **settings)
    assert isinstance(dream.unwrapped, DreamEnv) and dream.unwrapped._dream.horizon == 3
    assert isinstance(gym.make_vec(env, num_envs=2, **settings).unwrapped, DreamVectorEnv)


@pytest.mark.slow
@pytest.mark.engine
def test_ids_in_the_namespace_make_doom():
    code = (
        "import gymnasium; gymnasium.make('envs:worldmodel/Doom-v0').close();"
        "import envs; print(gymnasium.make('worldmodel/Doom-v0').unwrapped)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert "DoomEnv" in done.stdout


def test_a_dream_has_the_parameters_of_a_vector_of_dreams():
    one, many = (inspect.signature(kind).parameters for kind in (DreamEnv, DreamVectorEnv))
    assert list(one.values()) == [
        parameter for name, parameter in many.items() if name not in ("num_envs", "autoreset_mode")
    ]


@pytest.mark.parametrize(
    ("env", "canonical"),
    [
        ("worldmodel/Doom-v0", "envs:Doom-v0"),
        ("envs:worldmodel/Doom-v0", "envs:Doom-v0"),
        ("envs:Doom-v0", "envs:Doom-v0"),
        ("evil:worldmodel/Doom-v0", "evil:worldmodel/Doom-v0"),
        ("ale_py:ALE/Breakout-v5", "ale_py:ALE/Breakout-v5"),
    ],
)
def test_ids_in_the_namespace_have_one_spelling_in_files(env, canonical):
    assert env_wrappers.canonical_id(env) == canonical
