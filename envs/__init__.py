"""The worlds, registered with Gymnasium by name: ``gymnasium.make("envs:Doom-v0")``. Importing this loads no engine."""

import gymnasium

gymnasium.register("Doom-v0", entry_point="envs.doom:DoomEnv")
gymnasium.register("Lab-v0", entry_point="envs.lab:LabEnv")
gymnasium.register("Dream-v0", entry_point="envs.dream:DreamEnv", vector_entry_point="envs.dream:DreamVectorEnv")
gymnasium.register("Encoded-v0", entry_point="envs.encoded:EncodedEnv")
