"""Recipes say what was published, number by number.

The numbers are those of the official repository (WZDTHU/TiM, commit 5bec40a; of text to image 4bf4df2): the files of
configs/, with what projects/train/trainer_*.py, tim/data/*_data.py and scripts/train/*.sh say beside them, and of the
paper (arXiv 2509.04394, implementation details) for the batch of the XL models, whose script is of one small host.
"""

import re

import jax
import pytest

from tim_jax import data
from tim_jax.config import loading
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.config.keys import flatten
from tim_jax.config.objective import resolved

IMAGENET = 1_281_167  # images of its training part

COMMON = {
    "transport.name": "ot_fm",
    "objective.name": "tim",
    "objective.consistency": "eulerian",
    "objective.velocity": "data",
    "objective.derivative": "dde",
    "objective.epsilon": 0.005,
    "objective.weight.kernel": "sqrt",
    "objective.weight.scale": "tan",
    "objective.weight.difference": True,
    "objective.weight.sigma_d": 1.0,
    "objective.adaptive.power": 1.0,
    "objective.adaptive.offset": 1e-5,
    "objective.adaptive.total": False,
    "objective.direction": "channels",
    "objective.direction_weight": 1.0,
    "objective.alignment_weight": 1.0,
    "objective.guidance.w_gt": 1.0,
    "objective.guidance.w_cond": 0.0,
    "times.share_equal": 0.5,
    "times.share_min": 0.1,
    "times.intervals": "independent",
    "times.shift_reference": 0.0,  # there is none in tim/schedulers
    "data.features_width": 768,
    "data.condition_dropout": 0.1,
    "data.random_crop": False,
    "model.conditioning": "t-r",
    "model.separate_interval_embedder": True,
    "model.interval_aware": True,
    "model.qk_norm": True,
    "model.projector_width": 2048,
    "model.dropout": 0.0,
    "model.dtype": "bfloat16",
    "optimizer.name": "adamw",
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 0,
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.95,
    "optimizer.eps": 1e-6,
    "optimizer.weight_decay": 0.01,
    "optimizer.clip": 1.0,
    "optimizer.accumulation": 1,
    "optimizer.ema_warmup": False,
    "ema.slow": 0.9999,
}
CLASSES = COMMON | {"data.source": "latents", "data.flip": 0.5, "model.condition": "class", "model.num_classes": 1000}
XL_256 = CLASSES | {
    "data.height": 32, "data.width": 32, "data.channels": 4, "data.batch_size": 512, "model.patch_size": 2,
    "optimizer.learning_rate": 2e-4, "training.steps": 750_000, "checkpoint.every": 2000,
}  # fmt: skip
RECIPES = {
    "imagenet256_b": XL_256 | {  # configs/c2i/tim_b_p4.yaml on the four GPUs of its script
        "data.batch_size": 4 * 256, "model.patch_size": 4, "optimizer.learning_rate": 4e-4, "training.steps": 100_000,
    },
    "imagenet256_xl": XL_256,  # configs/c2i/tim_xl_p2_256.yaml
    "imagenet256_xl_guided": XL_256 | {  # configs/c2i/tim_xl_p2_256_mg.yaml
        "objective.guidance.w_cond": 0.75, "objective.guidance.t_low": 0.3, "objective.guidance.t_high": 0.8,
        "objective.guidance.start_step": 0, "objective.guidance.ema": "slow", "training.steps": 1_250_000,
    },
    "imagenet512_xl": XL_256 | {  # configs/c2i/tim_xl_p1_512.yaml
        "data.height": 16, "data.width": 16, "data.channels": 32, "model.patch_size": 1,
    },
    "t2i_xl": COMMON | {  # configs/t2i/tim_xl_p1_t2i.yaml on the 16 GPUs of its script
        "data.flip": 0.0, "data.channels": 32, "data.text_width": 1152, "data.text_tokens": 256,
        "data.buckets.tokens": 16 * 16 * 1024**2 // 32**2, "data.buckets.area": (4096 // 32) ** 2,
        "model.patch_size": 1, "model.condition": "text", "codecs.text_states": "last",
        "optimizer.learning_rate": 1e-4 * 128 * 16 / 512, "training.steps": 500_000, "checkpoint.every": 1000,
    },
}  # fmt: skip
# (width, depth, heads, bottleneck, encoder_depth) of the network; (P_mean, P_std) of t; the side of the image beside a
# latent that the image encoder sees, where there is one size.
NETWORKS = {name: (1152, 28, 16, 384, 8) for name in RECIPES} | {"imagenet256_b": (768, 12, 12, 256, 4)}
TIMES = dict.fromkeys(RECIPES, (-0.4, 1.0)) | {"t2i_xl": (0.0, 1.6)}
SIDES = {"imagenet256_b": 128, "imagenet256_xl": 256, "imagenet256_xl_guided": 256, "imagenet512_xl": 256}
# Where we differ on purpose: our value. The docstring has the flag that brings the published one.
OURS = {"objective.derivative": "jvp"}
# What has no key: words that the docstring must have.
SAID = {name: ("DINOv2", "in place of RADIO-v2.5-B") for name in RECIPES}


def docstring(name):
    """Of a recipe and of the recipes that it refers to, as one line."""
    text = " ".join((loading.load(name).__doc__ or "").split())
    others = set(re.findall(r"as (?:in )?(imagenet\w+)\.py", text)) - {name}
    return " ".join([text, *(docstring(other) for other in sorted(others))])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_published_numbers(name):
    found, text = flatten(resolved(loading.load(name).get_config())), docstring(name)
    for key, value in RECIPES[name].items():
        if key not in OURS:
            assert found[key] == value, key
            continue
        assert found[key] == OURS[key] != value, key
        assert f"--config.{key}={value}" in text, key
        assert flatten(resolved(load_config(name, {key: str(value)})))[key] == value
    for words in SAID[name]:
        assert words in text


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_builds_has_the_published_numbers(name):
    run = build(loading.load(name).get_config(), jax.devices()[:1])
    net = run.network
    assert (net.width, net.depth, net.heads, net.bottleneck, net.encoder_depth) == NETWORKS[name]
    assert net.z_dim == 768
    times = run.trainer.step.objective.times
    law = run.transport if times.distribution == "default" else times
    assert (law.distribution, law.P_mean, law.P_std) == ("logit_normal", *TIMES[name])
    if name in SIDES:
        assert run.inputs.shape[0] // run.inputs.augmentation.side * data.PIXELS_PER_TOKEN == SIDES[name]


def test_recipes_train_as_long_as_they_say():
    """80 epochs of B/4, and a learning rate of 1e-4 for every 256 examples (learning_rate_base_batch_size)."""
    config = loading.load("imagenet256_b").get_config()
    assert round(config.training.steps * config.data.batch_size / IMAGENET) == 80
    for name in RECIPES.keys() - {"t2i_xl"}:
        config = loading.load(name).get_config()
        assert config.optimizer.learning_rate == pytest.approx(1e-4 * config.data.batch_size / 256)


@pytest.mark.parametrize("name", RECIPES)
def test_every_flag_in_a_recipe_can_be_given(name):
    """Alone, as the docstring offers them; those of its launch commands have names in capitals."""
    for key, value in re.findall(r"--config\.([\w.]+)=([\w.]*\w)", docstring(name)):
        if not value.isupper() and not value.startswith("DINOV2") and not key.startswith("data."):
            build(load_config(name, {key: value}), jax.devices()[:1])


RELEASED = {
    "released_imagenet256": "imagenet256_xl",
    "released_imagenet512": "imagenet512_xl",
    "released_t2i": "t2i_xl",
}


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_model_differs_from_its_recipe_by_what_its_weights_need(name):
    ours, released = (flatten(loading.load(which).get_config()) for which in (RELEASED[name], name))
    needed = {"model.rope_order": "official", "sampling.exclusive_ends": True, "sampling.stochastic": "euler"}
    if name == "released_t2i":
        needed |= {"model.use_text_mask": False, "codecs.text_escapes": True}
    assert {key: value for key, value in released.items() if value != ours[key]} == needed
