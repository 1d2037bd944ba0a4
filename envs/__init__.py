"""Gymnasium environments of this package; importing it registers their ids and loads no engine and no torch.

Each has two ids: ``gymnasium.make("envs:Doom-v0")``; after ``import envs``, ``gymnasium.make("worldmodel/Doom-v0")``.
"""

import gymnasium

for _name, _entry_point, _vector_entry_point in (
    ("Doom-v0", "envs.doom:DoomEnv", None),
    ("Lab-v0", "envs.lab:LabEnv", None),
    ("Dream-v0", "envs.dream:DreamEnv", "envs.dream:DreamVectorEnv"),
    ("Encoded-v0", "envs.encoded:EncodedEnv", None),
):
    for _id in (_name, f"worldmodel/{_name}"):
        gymnasium.register(_id, entry_point=_entry_point, vector_entry_point=_vector_entry_point)
