"""The frozen networks against the numbers of the published implementations, and what else must hold of them."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tim_jax import codecs
from tim_jax.codecs import autoencoder_dc, autoencoder_kl, autoencoder_rae, bert, dino, gemma
from tim_jax.codecs.loading import shapes_of

BOUND = 1e-4  # of the largest value, in float32
KINDS = codecs.AUTOENCODERS | codecs.TEXT_ENCODERS | codecs.IMAGE_ENCODERS
TEXTS = ["gemma3_text_tiny", "bert_tiny"]


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


def close(ours, theirs, bound=BOUND):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound * np.abs(theirs).max())


def run(module, params, method, *inputs):
    return jax.jit(lambda p, *x: module.apply({"params": p}, *x, method=method))(params, *inputs)


def test_autoencoder_kl(golden, published):
    vae, params = codecs.load(published("autoencoder_kl_tiny"), KINDS)
    theirs = {name: nhwc(array) for name, array in golden("autoencoder_kl_tiny.npz").items()}
    mean, logvar = run(vae, params, "moments", theirs["image"])
    close(mean, theirs["mean"])
    close(logvar, theirs["logvar"])
    scale = vae.config.scaling_factor
    close(run(vae, params, "encode", theirs["image"]), theirs["mean"] * scale)
    close(run(vae, params, "decode", theirs["mean"] * scale), theirs["decoded_from_mean"])


def test_autoencoder_dc(golden, published):
    vae, params = codecs.load(published("autoencoder_dc_tiny"), KINDS)
    theirs = {name: nhwc(array) for name, array in golden("autoencoder_dc_tiny.npz").items()}
    scale = vae.config.scaling_factor
    close(run(vae, params, "encode", theirs["image"]) / scale, theirs["latent"])
    close(run(vae, params, "decode", theirs["latent"] * scale), theirs["decoded"])


@pytest.mark.parametrize("name", TEXTS)
def test_text_encoders(golden, published, name):
    net, params = codecs.load(published(name), KINDS)
    theirs = golden(f"{name}.npz")
    mask = theirs["attention_mask"].astype(bool)
    hidden = run(net, params, None, theirs["input_ids"], mask)
    close(np.asarray(hidden.last)[mask], theirs["last_hidden_state"][mask])
    close(np.asarray(hidden.second_to_last)[mask], theirs["second_to_last_hidden_state"][mask])


@pytest.mark.parametrize("name", ["dinov2_tiny", "dinov2_registers_tiny"])
def test_dino(golden, published, name):
    net, params = codecs.load(published(name), KINDS)
    theirs = golden(f"{name}.npz")
    for size in ("", "_rect"):
        close(run(net, params, None, nhwc(theirs[f"image{size}"])), theirs[f"last_hidden_state{size}"])


# Name, inputs here by name there, method, answer there, times what.
ON_A_MESH = {
    "autoencoder_kl_tiny": (["image"], "encode", "mean"),
    "autoencoder_dc_tiny": (["image"], "encode", "latent"),
    "gemma3_text_tiny": (["input_ids", "attention_mask"], None, "last_hidden_state"),
    "bert_tiny": (["input_ids", "attention_mask"], None, "last_hidden_state"),
    "dinov2_registers_tiny": (["image_rect"], None, "last_hidden_state_rect"),
    "net_rae_decoder": (["latent"], "decode", "decoded"),
}


def numbers(golden, name):
    """The golden arrays of a network; of the representation autoencoder as latents and images, as others have them."""
    found = dict(golden(f"{name}.npz"))
    if name == "net_rae_decoder":
        tokens, std = found["latent_tokens"], np.array(dino.STD)[:, None, None]
        found["latent"] = tokens.transpose(0, 2, 1).reshape(len(tokens), -1, 4, 4) / (1 + autoencoder_rae.STD_EPS)
        found["decoded"] = 2 * (found["image"] * std + np.array(dino.MEAN)[:, None, None]) - 1
    return {key: array.astype(np.float32) if array.dtype == np.float64 else array for key, array in found.items()}


@pytest.mark.parametrize("name", ON_A_MESH)
def test_rows_over_eight_devices_give_the_same_numbers(golden, published, name):
    """And no device sees the rows of another: there is nothing to send."""
    inputs, method, answer = ON_A_MESH[name]
    module, params = codecs.load(published(name), KINDS)
    theirs = numbers(golden, name)
    mesh = Mesh(np.array(jax.devices()), "data")
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())

    def eight(x):
        x = np.resize(x, (8, *x.shape[1:]))
        return nhwc(x) if x.ndim == 4 else x

    step = jax.jit(lambda p, *x: module.apply({"params": p}, *x, method=method))
    placed = jax.device_put([eight(theirs[key]) for key in inputs], rows)
    compiled = step.lower(jax.device_put(params, whole), *placed).compile()
    assert not [word for word in ("all-gather", "all-reduce", "all-to-all") if word in compiled.as_text()]
    ours = compiled(jax.device_put(params, whole), *placed)
    ours, mask = (ours.last, eight(theirs["attention_mask"]) > 0) if name in TEXTS else (ours, ...)
    assert ours.sharding.is_equivalent_to(rows, ours.ndim)
    scale = module.config.scaling_factor if method == "encode" else 1
    close(np.asarray(ours)[mask], eight(theirs[answer])[mask] * scale)


@pytest.mark.parametrize("name", ON_A_MESH)
def test_bfloat16_is_near(golden, published, name):
    inputs, method, answer = ON_A_MESH[name]
    module, params = codecs.load(published(name), KINDS, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(jnp.bfloat16)}
    theirs = numbers(golden, name)
    ours = run(module, params, method, *[nhwc(theirs[k]) if theirs[k].ndim == 4 else theirs[k] for k in inputs])
    wanted, mask = theirs[answer], ...
    if name in TEXTS:
        ours, mask = ours.last, theirs["attention_mask"] > 0
        assert ours.dtype == jnp.bfloat16
    elif method:
        wanted = nhwc(wanted) * (module.config.scaling_factor if method == "encode" else 1)
        assert ours.dtype == jnp.float32
    error = np.asarray(ours, np.float32)[mask] - wanted[mask]
    # Each of some tens of products is rounded to eight bits.
    assert 1e-4 < np.sqrt(np.mean(error**2)) / np.std(wanted[mask]) < 0.05


@pytest.mark.parametrize("name", ON_A_MESH)
def test_float32_is_multiplied_as_float32_on_every_device(golden, published, name):
    """Accelerators round its factors by default; here every product asks them not to. bfloat16 asks for nothing."""
    inputs, method, _ = ON_A_MESH[name]
    theirs = numbers(golden, name)
    inputs = [nhwc(theirs[k]) if theirs[k].ndim == 4 else theirs[k] for k in inputs]

    def products(dtype):
        module, params = codecs.load(published(name), KINDS, dtype)
        traced = jax.make_jaxpr(lambda p, *x: module.apply({"params": p}, *x, method=method))(params, *inputs)
        return set(re.findall(r" precision=(.*)", str(traced)))

    highest = "(Precision.HIGHEST, Precision.HIGHEST)"
    assert products(jnp.float32) == {highest}
    assert products(jnp.bfloat16) != {highest}


def test_a_sample_is_mean_and_noise_of_the_rows_own_key(published):
    vae, params = codecs.load(published("autoencoder_kl_tiny"), KINDS)
    rng = np.random.default_rng(0)
    mean, logvar = rng.standard_normal((2, 3, 4, 6, 4)).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), 3)
    sample = run(vae, params, "latents", mean, logvar, keys) / vae.config.scaling_factor
    noise = (sample - mean) / np.exp(0.5 * logvar)
    for row, key in enumerate(keys):
        np.testing.assert_allclose(noise[row], jax.random.normal(key, (4, 6, 4)), atol=1e-4)
    turned = run(vae, params, "latents", mean[::-1], logvar[::-1], keys[::-1]) / vae.config.scaling_factor
    np.testing.assert_array_equal(turned, sample[::-1])


@pytest.mark.parametrize("name", ["autoencoder_kl_tiny", "autoencoder_dc_tiny"])
def test_images_that_do_not_divide_are_refused(published, name):
    vae, params = codecs.load(published(name), KINDS)
    with pytest.raises(ValueError, match=f"30×48; both sides must be multiples of {vae.factor}"):
        run(vae, params, "encode", jnp.zeros((1, 30, 48, 3)))


@pytest.mark.parametrize("name", TEXTS)
def test_captions_know_nothing_of_their_padding(golden, published, name):
    """Nor of those beside them; and all padding is one vector."""
    net, params = codecs.load(published(name), KINDS)
    theirs = golden(f"{name}.npz")
    ids, mask = theirs["input_ids"][1:2, :9], theirs["attention_mask"][1:2, :9].astype(bool)
    short = run(net, params, None, ids, mask)
    other = np.where(mask, ids, 99)
    longer = np.pad(other, ((0, 0), (0, 7)), constant_values=5), np.pad(mask, ((0, 0), (0, 7)))
    for ours, alone in zip(run(net, params, None, *longer), short, strict=True):
        close(np.asarray(ours[:, :9])[mask], np.asarray(alone)[mask])
    padding = np.asarray(short.last)[~mask]
    close(padding, np.broadcast_to(padding[:1], padding.shape))


def test_a_linear_rope_factor_divides_positions():
    for stretched, plain in zip(gemma.rope(33, 16, 1e6, 8.0), gemma.rope(5, 16, 1e6, 1.0), strict=True):
        np.testing.assert_allclose(stretched[::8], plain, atol=1e-6)


def test_features_lie_on_the_grid_they_are_asked_for(published):
    """At the size of the grid's patches, features are those of the normalised image; otherwise it is resized."""
    net, params = codecs.load(published("dinov2_registers_tiny"), KINDS)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 42, 28, 3)).astype(np.float32)
    features = jax.jit(lambda p, x: net.apply({"params": p}, x, (3, 2), method="features"))
    normal = ((images + 1) / 2 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    tokens = run(net, params, None, normal.astype(np.float32))
    close(features(params, images), tokens[:, 1 + 4 :])
    assert features(params, images).shape == (2, 3 * 2, net.width)
    doubled = images.repeat(2, 1).repeat(2, 2)
    assert features(params, doubled).shape == (2, 3 * 2, net.width)


def test_bicubic_weights_are_exact_for_lines_inside_and_keep_what_is_the_same_size():
    np.testing.assert_array_equal(dino.bicubic(5, 5), np.eye(5))
    weights = dino.bicubic(9, 14)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    # Half way between two samples the weights are those of the cubic with a = -3/4.
    np.testing.assert_allclose(dino.bicubic(6, 3)[1, 1:5], [-0.09375, 0.59375, 0.59375, -0.09375], atol=1e-6)


EFFICIENT = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
F128 = EFFICIENT + ("EfficientViTBlock",) * 2
# Published networks, and how many parameters their files hold.
SIZES = {
    "sd-vae": (
        autoencoder_kl.AutoencoderKL(autoencoder_kl.Config((128, 256, 512, 512), layers_per_block=2)),
        83_653_863,
    ),
    "dc-ae-f32c32-sana": (
        autoencoder_dc.AutoencoderDC(
            autoencoder_dc.Config(
                encoder_block_types=EFFICIENT,
                decoder_block_types=EFFICIENT,
                downsample_block_type="Conv",
                upsample_block_type="interpolate",
            )
        ),
        312_250_275,
    ),
    "dc-ae-f128c512-in": (
        autoencoder_dc.AutoencoderDC(
            autoencoder_dc.Config(
                latent_channels=512,
                encoder_block_types=F128,
                decoder_block_types=F128,
                encoder_block_out_channels=(128, 256, 512, 512, 1024, 1024, 2048, 2048),
                decoder_block_out_channels=(128, 256, 512, 512, 1024, 1024, 2048, 2048),
                encoder_layers_per_block=(0, 4, 8, 2, 2, 2, 2, 2),
                decoder_layers_per_block=(0, 5, 10, 2, 2, 2, 2, 2),
                encoder_qkv_multiscales=((),) * 8,
                decoder_qkv_multiscales=((),) * 8,
                decoder_norm_types=("batch_norm",) * 3 + ("rms_norm",) * 5,
                decoder_act_fns=("relu",) * 3 + ("silu",) * 5,
            )
        ),
        1_120_695_052,
    ),
    # And of these the pooler, 147,840 more, and the numbers of positions.
    "minilm": (bert.Bert(bert.Config(30522, 384, 1536, 6, 12, 512)), 22_713_216 - 147_840),
    "gemma-3-1b": (
        gemma.Gemma(gemma.Config(262144, 1152, 6912, 26, 4, 1, 256, (gemma.LOCAL,) * 26, sliding_window=512)),
        999_885_952,
    ),
    # Of these a file holds one vector more, which only training uses.
    "dinov2-base": (dino.Dino(dino.Config(768, 12, 12, 518)), 86_580_480 - 768),
}


@pytest.mark.parametrize("name", SIZES)
def test_published_layouts_have_the_published_number_of_parameters(name):
    module, number = SIZES[name]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes_of(module))) == number
