"""Compare an agent with a random policy: ``python -m agents.evaluate --agent runs/agent --episodes 100``."""

import json
from pathlib import Path
from typing import Any

from worldmodel import cli, media
from worldmodel.checks import check_seed
from worldmodel.episodes.collect import check_agent
from worldmodel.files import check_file, write_atomically
from worldmodel.shipped import find_agent


def evaluate(
    agent: str,
    env: str = "",
    env_kwargs: dict[str, Any] = {},
    episodes: int = 100,
    seed: int = 0,
    horizon: int = 0,
    greedy: bool = False,
    script: str = "",
    video: str = "",
    dream_beside: bool = False,
    out: str = "",
) -> None:
    """Evaluate an agent and a random policy with the same seeds, by default in the real environment.

    The other policies hold each action for as many frames as the agent does.

    Args:
        agent: name of a shipped agent, or run folder of one.
        env: Gymnasium id of the environment; by default the real one behind the agent's dreams, if it is part of this
            package. With envs:Dream-v0, the agent plays in its own dream.
        env_kwargs: arguments of the environment, added to those of the agent's training.
        episodes: number of episodes for the agent and for the random policy.
        seed: seed of the environments and the policies.
        horizon: steps after which an episode is cut off; 0 for the agent's evaluation_horizon, else the horizon of its
            training environment, else 4000.
        greedy: take the agent's most probable action instead of a sampled one.
        script: actions to also evaluate, over and over, such as forward, or forward:3,look_left.
        video: video file of the agent's first episode to write, .gif, .mp4 or .png.
        dream_beside: also show an episode of the agent in its own dream, at the right of --video; the shorter one is
            dimmed at its end.
        out: JSON file to write all returns to.
    """
    import torch

    from agents import rollouts
    from agents.policy import Policy, read_agent_config

    if episodes < 1 or horizon < 0:
        raise ValueError(f"--episodes must be 1 or more and --horizon 0 or more, got {episodes} and {horizon}")
    check_seed(seed)
    if dream_beside and not video:
        raise ValueError("--dream_beside needs a --video to write")
    if video:
        media.check_path(Path(video))
    if out:
        check_file(Path(out))
    torch.set_num_threads(1)
    policy, data = Policy.load(agent, greedy), read_agent_config(find_agent(agent))["data"]
    evaluation_env = rollouts.make_evaluation_env(data, env, env_kwargs, horizon)
    names = tuple(evaluation_env.env.get_wrapper_attr("action_names"))
    shape, expected = evaluation_env.env.observation_space.shape, policy.network.config.observation_shape
    check_agent(policy, agent, names, None if evaluation_env.encoded else shape)
    if evaluation_env.encoded and shape != tuple(expected):
        raise ValueError(f"the agent {agent} observes {tuple(expected)}, {evaluation_env.env_id} shows {shape}")
    if evaluation_env.encoded and policy.network.config.codebook_size:
        world = evaluation_env.env.get_wrapper_attr("world")
        if not torch.equal(policy.vqvae.quantizer.codebook, world.vqvae.quantizer.codebook):
            raise ValueError(f"the agent {agent} sees the codes of another VQ-VAE than that of the world {world.run}")
    players: dict[str, rollouts.Player] = {"agent": policy}
    players["random"] = rollouts.RandomPolicy(names, policy.action_repeat)
    if script:
        players["script"] = rollouts.ScriptedPolicy(names, script, policy.action_repeat)
    films = {"agent": [], "dream": []}
    rows = {
        name: rollouts.play_episodes(evaluation_env, player, episodes, seed, name, films.get(name) if video else None)
        for name, player in players.items()
    }
    print(f"{evaluation_env.env_id}, {episodes} episodes of {evaluation_env.horizon} steps at most")
    for name, results in rows.items():
        scores = rollouts.summary(results)
        print(
            f"{name:7} return {scores['return']:.4g} ± {scores['deviation']:.4g}, "
            f"mean in [{scores['low']:.4g}, {scores['high']:.4g}], {scores['steps']:.4g} steps"
        )
    if video:
        if dream_beside:
            dream = rollouts.make_evaluation_env(data, rollouts.DREAM_ENV, horizon=evaluation_env.horizon)
            rollouts.play_episodes(dream, policy, 1, seed, "dream", films["dream"])
        rate = evaluation_env.env.metadata.get("render_fps") or 8.75
        rollouts.write_film(Path(video), films["agent"], films["dream"], rate)
    if out:
        facts = {"run": agent, "weights": policy.digest, "env": evaluation_env.env_id}
        facts |= {"env_kwargs": evaluation_env.env_kwargs, "horizon": evaluation_env.horizon}
        facts |= {"seed": seed, "greedy": greedy, "actions": script}
        parts = {
            name: {**rollouts.summary(results), "returns": [result.episode_return for result in results]}
            for name, results in rows.items()
        }
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(out), json.dumps({**facts, **parts}, indent=1).encode())


if __name__ == "__main__":
    cli.run(evaluate)
