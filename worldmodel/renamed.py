"""Old names in the ``config.yaml`` of runs and the ``store.json`` of stores, and what they are called now.

Runs of format 1 (without ``format``) were written by version 0.1.0 and before; format 2 uses the names on the right.
"""

from typing import Any

FORMAT = 2
KINDS = {"prior": "dynamics", "pixelcnn": "spatial_prior"}
QUANTIZER = {
    "codes": "codebook_size",
    "dim": "code_dim",
    "initial": "init",
    "scale": "init_std",
    "commitment": "commitment_weight",
    "codebook": "codebook_weight",
    "decay": "ema_decay",
    "samples": "num_samples",
    "revive_every": "dead_code_reset_every",
    "temperature": "initial_temperature",
    "coldest": "min_temperature",
    "cooling": "anneal_steps",
    "divergence": "kl_weight",
    "noise": "noise_std",
    "discrete": "discrete_fraction",
}
RESIDUAL = {"residual_hidden": "residual_channels", "residual_blocks": "num_residual_blocks"}
SPATIAL_PRIOR = {
    "codes": "codebook_size",
    "classes": "num_classes",
    "dim": "code_dim",
    "hidden": "hidden_channels",
    "layers": "num_layers",
    "kernel": "kernel_size",
    "cycle": "dilation_cycle",
}
AUTOENCODER = {"channels": "in_channels", "hidden": "hidden_channels", "halvings": "num_downsamples", **RESIDUAL}
MODELS = {
    "vqvae": {**AUTOENCODER, "variance": "data_variance"},
    "autoencoder": {**AUTOENCODER, "latents": "num_latents", "samples": "num_samples"},
    "dynamics": {
        "codes": "codebook_size",
        "actions": "num_actions",
        "dim": "code_dim",
        "context": "context_length",
        "patch": "patch_size",
        "width": "embed_dim",
        "heads": "num_heads",
        "blocks": "num_layers",
        "motion": "motion_channels",
        "hidden": "ar_channels",
        "layers": "ar_layers",
        "targets": "num_targets",
        "noise": "token_noise",
        "imagined": "scheduled_sampling",
        "outcome_weight": "reward_termination_weight",
        "ending_weight": "termination_pos_weight",
        "untold": "action_dropout",
    },
    "spatial_prior": SPATIAL_PRIOR,
    "speech_prior": SPATIAL_PRIOR,
    "global_codes": {
        "codes": "codebook_size",
        "dim": "code_dim",
        "latents": "num_latents",
        "width": "hidden_channels",
        "hidden": "ar_channels",
        "layers": "ar_layers",
        "halvings": "num_downsamples",
        "plain": "aux_weight",
        "drop": "code_dropout",
        "drop_steps": "code_dropout_steps",
        **RESIDUAL,
    },
    "speech": {
        "speakers": "num_speakers",
        "hears": "encoder_input",
        "hidden": "hidden_channels",
        "width": "condition_channels",
        "channels": "decoder_channels",
        "layers": "decoder_layers",
        "cycle": "dilation_cycle",
        "skip": "skip_channels",
        "untold": "code_dropout",
        "plain": "aux_weight",
        "alone": "aux_only_steps",
        "startup": "quantizer_warmup_steps",
        **RESIDUAL,
    },
    "agent": {
        "width": "conv_channels",
        "hidden": "hidden_units",
        "embedding": "embed_dim",
        "codes": "codebook_size",
        "shape": "observation_shape",
        "actions": "num_actions",
    },
}
TRAIN = {"decay": "decay_fraction", "clip": "grad_clip", "average": "ema_decay", "warmup": "warmup_steps"}
AGENT_TRAIN = {
    "steps": "total_timesteps",
    "entropy": "ent_coef",
    "clip": "clip_coef",
    "gradient_clip": "max_grad_norm",
    "batch": "batch_size",
    "minibatch": "minibatch_size",
    "epochs": "update_epochs",
    "runners": "num_env_runners",
    "gpus": "num_gpus",
}
DATA = {"batch": "batch_size", "length": "seq_length", "samples": "num_samples"}
SPEECH_SPLITS = {"learnt": "train", "unheard": "unseen_speakers"}
SPEECH_DATA = {"batch": "batch_size", "length": "segment_length", **SPEECH_SPLITS}
SPEECH_PRIOR_DATA = {**DATA, **SPEECH_SPLITS}
PROVENANCE = {"longest": "max_episode_steps", "explore": "epsilon"}


def renamed(values: Any, names: dict[str, str]) -> Any:
    """A mapping with new keys in place of old ones; anything else comes back as it is."""
    return {names.get(name, name): value for name, value in values.items()} if isinstance(values, dict) else values


def upgrade_config(values: Any) -> Any:
    """The values of a run's config.yaml in the names of today; those of format 2 come back as they are."""
    if not isinstance(values, dict) or values.get("format", 1) == FORMAT:
        return values
    kind = values.get("kind")
    kind = KINDS.get(kind, kind) if isinstance(kind, str) else None
    if kind not in MODELS:
        return values
    model = renamed(values.get("model"), MODELS[kind])
    if isinstance(model, dict) and "quantizer" in model:
        model["quantizer"] = renamed(model["quantizer"], QUANTIZER)
    data = renamed(values.get("data"), {"speech": SPEECH_DATA, "speech_prior": SPEECH_PRIOR_DATA}.get(kind, DATA))
    if isinstance(data, dict) and "provenance" in data:
        data["provenance"] = renamed(data["provenance"], PROVENANCE)
    sections = {"model": model, "train": renamed(values.get("train"), AGENT_TRAIN if kind == "agent" else TRAIN)}
    sections = {name: section for name, section in {**sections, "data": data}.items() if name in values}
    return {**values, "format": FORMAT, "kind": kind, **sections}
