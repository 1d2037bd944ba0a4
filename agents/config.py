"""Sizes of an agent's network and settings of its training."""

from dataclasses import dataclass

from worldmodel.checks import check_ranges

MAX_FEATURE_SIDE = 6  # the network halves its input until both sides have at most this many positions


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of an agent's network.

    Attributes:
        conv_channels: channels of the convolutional layers.
        hidden_units: units of the layer that the policy head and the value head share.
        embed_dim: size of a code's embedding, which starts as a random projection of its codebook vector.
        codebook_size: number of codes, or 0 for frame observations; set from the world.
        observation_shape: shape of an observation, set from the world: codes (h, w) or (history, h, w), or frames
            (H, W, 3·history).
        num_actions: number of actions; set from the world.
        value_scale: approximate magnitude of returns; 0 to derive it from the world's rewards and gamma.
    """

    conv_channels: int = 32
    hidden_units: int = 256
    embed_dim: int = 16
    codebook_size: int = 0
    observation_shape: tuple[int, ...] = ()
    num_actions: int = 0
    value_scale: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "observation_shape", tuple(self.observation_shape))  # YAML gives lists
        if len(self.observation_shape) == 4:  # (history, H, W, 3) of older agents: the same channels in the same order
            history, height, width, channels = self.observation_shape
            object.__setattr__(self, "observation_shape", (height, width, channels * history))
        check_ranges(
            "model",
            self,
            ("conv_channels", "hidden_units", "embed_dim"),
            ("codebook_size", "num_actions", "value_scale"),
        )


@dataclass(frozen=True)
class AgentConfig:
    """Settings of PPO training (Schulman et al. 2017).

    Attributes:
        total_timesteps: total number of environment steps.
        learning_rate: learning rate of Adam.
        gamma: discount factor per step, in [0, 1).
        gae_lambda: lambda of generalized advantage estimation (Schulman et al. 2016), in [0, 1].
        ent_coef: weight of the policy's entropy in the loss; larger values explore more.
        clip_coef: clipping range of PPO's probability ratio around 1.
        max_grad_norm: gradient norm above which gradients are clipped.
        batch_size: environment steps per iteration.
        minibatch_size: environment steps per gradient step.
        update_epochs: passes over the batch in each iteration.
        num_envs: environments that one runner steps together.
        num_env_runners: number of Ray actors that step environments; 0 for this process.
        num_gpus: GPUs of the learner, 0 or 1; --env.device cuda moves the dreams to the GPU, too.
        evaluate_every: iterations between two evaluations in the real environment; 0 for none.
        evaluation_episodes: episodes of each evaluation.
        evaluation_horizon: frames after which an evaluation episode is cut off; 0 for the horizon of the training
            environment.
        evaluation_greedy: evaluate with the most probable action instead of a sampled one.
        seed: seed of the initial weights, the environments and all sampling.
        allow_changes: continue an existing run even if its world or seed was different.
    """

    total_timesteps: int = 1_000_000
    learning_rate: float = 3e-4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    ent_coef: float = 0.01
    clip_coef: float = 0.2
    max_grad_norm: float = 0.5
    batch_size: int = 2048
    minibatch_size: int = 256
    update_epochs: int = 4
    num_envs: int = 16
    num_env_runners: int = 0
    num_gpus: int = 0
    evaluate_every: int = 20
    evaluation_episodes: int = 16
    evaluation_horizon: int = 0
    evaluation_greedy: bool = False
    seed: int = 0
    allow_changes: bool = False

    def __post_init__(self) -> None:
        counts = ("total_timesteps", "batch_size", "minibatch_size", "update_epochs", "num_envs", "evaluation_episodes")
        weights = ("ent_coef", "num_env_runners", "num_gpus", "evaluate_every", "evaluation_horizon", "seed")
        check_ranges("train", self, counts, weights, ("learning_rate", "clip_coef", "max_grad_norm"), ("gae_lambda",))
        if not 0 <= self.gamma < 1:
            raise ValueError(f"train.gamma must be in [0, 1), got {self.gamma}")
        rows = self.num_envs * max(1, self.num_env_runners)
        if self.batch_size % rows or not self.minibatch_size <= self.batch_size:
            raise ValueError(
                f"train.batch_size must be a multiple of the {rows} environments that are stepped together, "
                f"and train.minibatch_size {self.minibatch_size} or more, got {self.batch_size}"
            )
