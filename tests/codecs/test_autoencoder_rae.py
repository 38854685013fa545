"""The representation autoencoder against the numbers of published code, and what it says if nothing encodes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tim_jax import codecs
from tim_jax.codecs import dino
from tim_jax.codecs.settings import CodecSettings

GRID = 4  # latents along each side
COLOURS = np.array(dino.MEAN), np.array(dino.STD)


def configured(folder, **values):
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def nhwc(x):
    return np.asarray(x).transpose(0, 2, 3, 1)


def run(module, params, method, x):
    return jax.jit(lambda p, x: module.apply({"params": p}, x, method=method))(params, x)


@pytest.mark.parametrize("dtype, bound", [("float32", 1e-5), ("float64", 1e-9)])
def test_the_decoder_is_the_published_one(golden, published, x64, dtype, bound):
    vae, params = codecs.load(published("net_rae_decoder"), codecs.AUTOENCODERS, jnp.dtype(dtype))
    theirs = golden("net_rae_decoder.npz")
    tokens = theirs["latent_tokens"].reshape(-1, GRID, GRID, vae.config.latent_channels).astype(dtype)
    image = run(vae, params, lambda m, z: m.decoder(z), tokens)
    assert image.dtype == dtype
    np.testing.assert_allclose(image, nhwc(theirs["image"]), rtol=0, atol=bound)
    p = vae.factor
    patches = np.asarray(image).reshape(-1, GRID, p, GRID, p, 3).swapaxes(2, 3).reshape(theirs["logits"].shape)
    np.testing.assert_allclose(patches, theirs["logits"], rtol=0, atol=bound)
    mean, std = COLOURS
    latents = tokens / (1 + 1e-5)  # as published code has it, which adds to deviations, to those that are 1 as well
    ours = run(vae, params, "decode", latents.astype(dtype))
    np.testing.assert_allclose(ours, 2 * (nhwc(theirs["image"]) * std + mean) - 1, rtol=0, atol=bound)


@pytest.mark.parametrize("places", [(), (1, 1), (GRID, GRID)])
def test_latents_are_normalised_by_stored_statistics(golden, published, places):
    """Of a channel, or of a channel at each place: latents (tokens − mean) / std decode to what the tokens do."""
    rng, theirs = np.random.default_rng(0), golden("net_rae_decoder.npz")
    mean, std = rng.normal(size=(24, *places)), rng.uniform(0.5, 2, (24, *places))
    plain, params = codecs.load(published("net_rae_decoder"), codecs.AUTOENCODERS)
    folder = configured(
        published("net_rae_decoder"), latents_mean=mean.tolist(), latents_std=std.tolist(), scaling_factor=0.5
    )
    vae, _ = codecs.load(folder, codecs.AUTOENCODERS)
    tokens = theirs["latent_tokens"].reshape(-1, GRID, GRID, 24)
    mean, std = (np.moveaxis(x.reshape(24, *(places or (1, 1))), 0, -1)[None] for x in (mean, std))
    latents = 0.5 * (tokens - mean) / (std + 1e-5)
    ours = run(vae, params, "decode", np.float32(latents))
    wanted = run(plain, params, "decode", np.float32(tokens / (1 + 1e-5)))
    np.testing.assert_allclose(ours, wanted, atol=1e-5)


@pytest.fixture
def whole(published):
    """A published folder with an encoder, the small DINOv2, and a decoder of patches of the same size."""
    folder, encoder = published("net_rae_decoder"), published("dinov2_registers_tiny")
    state, rng = load_file(folder / "model.safetensors"), np.random.default_rng(1)
    for name, shape in {"embed.weight": (64, 32), "pred.weight": (588, 64), "pred.bias": (588,)}.items():
        state[f"decoder_{name}"] = rng.normal(size=shape).astype(np.float32) / 8
    old, new = [f".attention.attention.{n}." for n in ("query", "key", "value")], [f".attention.to_{n}." for n in "qkv"]
    renames = dict(zip([*old, ".attention.output.dense."], [*new, ".attention.to_out.0."], strict=True))
    there = {}
    for name, array in state.items():
        for a, b in renames.items():
            name = name.replace(a, b)
        there[f"decoder.{name}"] = array
    dinos = load_file(encoder / "model.safetensors")
    there |= {f"encoder.model.{name}": array for name, array in dinos.items() if not name.startswith("layernorm.")}
    there |= {"encoder_mean": np.zeros((1, 3, 1, 1), np.float32), "_latents_std": np.ones(1, np.float32)}
    save_file(there, folder / "model.safetensors")
    return configured(
        folder, encoder_type="dinov2", encoder_hidden_size=32, encoder_num_hidden_layers=3, patch_size=14,
        encoder_num_attention_heads=4, encoder_image_size=56,
    )  # fmt: skip


@pytest.mark.parametrize("size", ["", "_rect"])
def test_the_encoder_is_dino_without_scale_and_bias_of_its_last_norm(golden, published, whole, size):
    vae, params = codecs.load(whole, codecs.AUTOENCODERS)
    theirs, state = (
        golden("dinov2_registers_tiny.npz"),
        load_file(published("dinov2_registers_tiny") / "model.safetensors"),
    )
    pixels = nhwc(theirs[f"image{size}"])
    mean, std = COLOURS
    latents = run(vae, params, "encode", np.float32(2 * (pixels * std + mean) - 1))
    tokens = (theirs[f"last_hidden_state{size}"][:, 5:] - state["layernorm.bias"]) / state["layernorm.weight"]
    np.testing.assert_allclose(latents.reshape(tokens.shape), tokens, atol=2e-4)
    assert latents.shape == (len(pixels), pixels.shape[1] // 14, pixels.shape[2] // 14, 32)
    assert run(vae, params, "decode", latents).shape == pixels.shape


def test_images_of_another_patch_size_are_resized(published, whole):
    """A decoder with patches of 16 has images of 16 / 14 the encoder's size; flat ones stay what they are."""
    configured(whole, patch_size=16)
    vae = codecs.describe(whole, codecs.AUTOENCODERS)
    params = jax.jit(vae.init)(jax.random.key(0), *vae.example())["params"]
    colour = np.float32([0.3, -0.2, 0.7])
    flat = np.broadcast_to(colour, (1, 32, 48, 3))
    latents = run(vae, params, "encode", flat)
    assert latents.shape == (1, 2, 3, 32)
    mean, std = COLOURS
    normal = np.broadcast_to((colour / 2 + 0.5 - mean) / std, (1, 28, 42, 3)).astype(np.float32)
    tokens = run(vae, params, lambda m, x: m.encoder(x), normal)[:, 5:]
    np.testing.assert_allclose(latents.reshape(tokens.shape), tokens, atol=1e-4)


def test_what_decodes_only_says_so(published):
    folder = published("net_rae_decoder")
    for kind in (None, "siglip2"):
        vae, params = codecs.load(configured(folder, encoder_type=kind), codecs.AUTOENCODERS)
        with pytest.raises(ValueError, match=r"encoder_type is .*; it must be 'dinov2' to encode: this decodes only"):
            run(vae, params, "encode", jnp.zeros((1, 16, 16, 3)))
    settings = CodecSettings(autoencoder=str(folder))
    assert settings.factor_of_images(False, "class", 0) == 1
    with pytest.raises(ValueError, match="must be one that encodes, for data.encode True: this one decodes only$"):
        settings.factor_of_images(True, "class", 0)


@pytest.mark.parametrize(
    "values, said",
    [
        (dict(encoder_input_size=57), "encoder_input_size is 57; it must be a multiple of encoder_patch_size, 14"),
        (dict(latents_std=[1.0] * 7), "latents_std is of 7 channels; it must be of encoder_hidden_size, 24"),
        (dict(reshape_to_2d=False), "reshape_to_2d is False; supported is True alone"),
    ],
)
def test_what_does_not_fit_is_one_line(published, values, said):
    with pytest.raises(ValueError, match=said):
        codecs.describe(configured(published("net_rae_decoder"), **values), codecs.AUTOENCODERS)
