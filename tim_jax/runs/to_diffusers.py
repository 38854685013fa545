"""A DiT as a folder of diffusers, for `python -m tim_jax.convert export --to=diffusers`.

The folder is that of a `DiTPipeline` without its autoencoder. diffusers repeats the embedders of times and classes in
every block. It embeds times at the frequencies 10000^(−i/127), and DiT, as it is published and here, at 10000^(−i/128):
outputs are the same once `downscale_freq_shift` is 0, which no file can say, so that the card does.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from safetensors.numpy import save

from tim_jax.config.run import Run
from tim_jax.runs import limits
from tim_jax.runs.conversion import Exported, Extra

INDEX = "model_index.json"  # of a folder of diffusers
VERSION = "0.35.2"  # of diffusers, whose names these are

# Official name with * for the number of a block → diffusers' names, among which it is split along its first axis.
NAMES = {
    "x_embedder.proj": ("pos_embed.proj",),
    "blocks.*.adaLN_modulation.1": ("transformer_blocks.*.norm1.linear",),
    "blocks.*.attn.qkv": tuple(f"transformer_blocks.*.attn1.to_{part}" for part in "qkv"),
    "blocks.*.attn.proj": ("transformer_blocks.*.attn1.to_out.0",),
    "blocks.*.mlp.fc1": ("transformer_blocks.*.ff.net.0.proj",),
    "blocks.*.mlp.fc2": ("transformer_blocks.*.ff.net.2",),
    "final_layer.adaLN_modulation.1": ("proj_out_1",),
    "final_layer.linear": ("proj_out_2",),
}
# Official name → diffusers' name in each block.
REPEATED = {
    "t_embedder.mlp.0": "transformer_blocks.*.norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "transformer_blocks.*.norm1.emb.timestep_embedder.linear_2",
    "y_embedder.embedding_table": "transformer_blocks.*.norm1.emb.class_embedder.embedding_table",
}
LIMITS: list[limits.Limit] = [
    ("model.network", lambda run: run.config.model.network in ("dit", "sit"), "'dit'"),
    ("model.positions", lambda run: run.network.positions == "sincos", "'sincos'"),
    ("model.clock", lambda run: run.network.clock == "t", "'t'"),
    ("model.negated", lambda run: not run.network.negated, "False"),
    ("model.interval", lambda run: run.network.interval == "modulation", "'modulation'"),
    ("model.class_tokens", lambda run: run.network.class_tokens == 0, "0"),
    ("model.decoupled_depth", lambda run: run.network.decoupled_depth == 0, "0"),
    ("objective.input_guidance.max_scale", lambda run: not run.network.guidance_input, "1"),
    ("transport.name", lambda run: run.transport.name == "ddpm", "'ddpm', diffusers' process"),
    ("transport.noise_std", lambda run: run.transport.noise_std == 1, "1"),
    ("transport.prediction", lambda run: run.transport.prediction == "F", "'F', which is the noise"),
    ("data.width", lambda run: run.config.data.width == run.config.data.height, "data.height"),
]


def of_export(exported: Exported, name: str, _: dict[str, str]) -> Extra:
    """Returns the files of a folder of diffusers, and what the card says of them.

    Raises:
        ValueError: naming key and value, for a run that diffusers could not sample, or a network that has learned of
            the interval from t to r, which diffusers' does not know.
    """
    run = limits.run_of(exported)
    limits.check(run, LIMITS, "diffusers")
    learned = [key for key in exported.state if key.startswith("tim_jax.delta_embedder/")]
    if learned:
        raise ValueError(
            f"objective.name is {run.config.objective.name!r}; it must be 'flow_matching' with --to=diffusers, whose "
            f"network has no {learned[0].removeprefix('tim_jax.')}"
        )
    files = {
        INDEX: index(exported),
        "scheduler/scheduler_config.json": SCHEDULER,
        "transformer/config.json": config(run),
    }
    weights = save(dict(renamed(exported.state, run.network.depth)), {"format": "pt"})
    encoded = {path: (json.dumps(value, indent=2) + "\n").encode() for path, value in files.items()}
    return Extra(encoded | {"transformer/diffusion_pytorch_model.safetensors": weights}, _use(run, name), alone=True)


def renamed(state: dict[str, np.ndarray], depth: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the parameters of a DiT with `depth` blocks under diffusers' names."""
    for official, ours in NAMES.items():
        for block in range(depth) if "*" in official else [0]:
            for kind in ("weight", "bias"):
                whole = state[f"{official.replace('*', str(block))}.{kind}"]
                for name, part in zip(ours, np.split(whole, len(ours)), strict=True):
                    yield f"{name.replace('*', str(block))}.{kind}", np.ascontiguousarray(part)
    for official, name in REPEATED.items():
        for kind in ("weight", "bias"):
            for block in range(depth) if f"{official}.{kind}" in state else []:
                yield f"{name.replace('*', str(block))}.{kind}", state[f"{official}.{kind}"]


def config(run: Run) -> dict[str, Any]:
    """The configuration of the network."""
    network: Any = run.network
    return {
        "_class_name": "DiTTransformer2DModel",
        "_diffusers_version": VERSION,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": network.width // network.heads,
        "dropout": 0.0,
        "in_channels": network.channels,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "norm_type": "ada_norm_zero",
        "num_attention_heads": network.heads,
        "num_embeds_ada_norm": network.num_classes,
        "num_layers": network.depth,
        "out_channels": network.channels * (1 + network.learn_sigma),
        "patch_size": network.patch_size,
        "sample_size": run.config.data.height,
        "upcast_attention": False,
    }


SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": VERSION,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": True,
    "steps_offset": 0,
}


def index(exported: Exported) -> dict[str, Any]:
    """What the pipeline is made of, and the names of classes."""
    return {
        "_class_name": "DiTPipeline",
        "_diffusers_version": VERSION,
        "id2label": {str(label): name for label, name in enumerate(exported.origin.classes)},
        "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _use(run: Run, name: str) -> str:
    """How the folder is used."""
    program = (
        "from diffusers import AutoencoderKL, DiTPipeline\n\n"
        'vae = AutoencoderKL.from_pretrained("AUTOENCODER")  # whose latents the network was trained on\n'
        f"pipeline = DiTPipeline.from_pretrained({name!r}, vae=vae)\n"
        "for block in pipeline.transformer.transformer_blocks:\n"
        "    block.norm1.emb.time_proj.downscale_freq_shift = 0  # frequencies 10000^(−i/128), as DiT is trained\n"
        "images = pipeline([0, 1], guidance_scale=1.0, num_inference_steps=50).images"
    )
    null = run.config.model.num_classes
    guidance = "" if null == 1000 else f"\n\nIts guidance takes 1000 for no class, which here is {null}."
    return f"In diffusers:\n\n```python\n{program}\n```{guidance}"
