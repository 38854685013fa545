"""Steering from the command line and from Python: measurements, rewards, latents, editing, and what is refused."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import tim_jax
from tests.helpers.classifiers import classifier_file
from tests.helpers.workdirs import TINY, one_device, told, workdir
from tim_jax import codecs, evaluate, sample
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.runs import rewards
from tim_jax.runs.generation import resampled
from tim_jax.runs.steering import open_aim

DIGITS = pathlib.Path(__file__).resolve().parents[2] / "notebooks" / "digits"
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def tim():
    with one_device():
        return tim_jax.load(DIGITS)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with an image, the mask of its right half, and a measurement of 2 × 2 pixels."""
    folder = tmp_path_factory.mktemp("given")
    image = np.clip(np.add.outer(np.arange(8), np.arange(8)) * 18, 0, 255).astype(np.uint8)
    Image.fromarray(image).save(folder / "image.png")
    Image.fromarray(np.repeat([[0, 255]], 8, axis=0).repeat(4, axis=1).astype(np.uint8)).save(folder / "mask.png")
    Image.fromarray(image.reshape(2, 4, 2, 4).mean((1, 3)).astype(np.uint8)).save(folder / "small.png")
    return folder


def pixels(images):
    return np.stack([np.asarray(image.convert("L"), np.float32) for image in images])


def test_python_keeps_what_a_mask_says_is_known(tim, given):
    image, mask = Image.open(given / "image.png"), Image.open(given / "mask.png")
    for method in ("flowchef", "resample"):
        drawn = pixels(tim([3, 5], steps=2, steer={"image": image, "mask": mask, "method": method}))
        np.testing.assert_allclose(drawn[:, :, :4], np.asarray(image)[None, :, :4].repeat(2, axis=0), atol=1)
        assert np.abs(drawn[0, :, 4:] - drawn[1, :, 4:]).max() > 20
    free = pixels(tim([3, 5], steps=2))
    assert np.abs(free - drawn)[:, :, :4].max() > 20, "without steer it is not steered"


def test_errors_name_arguments_of_python(tim, given):
    image = Image.open(given / "image.png")
    for steer, said in (
        ({"operator": "cartoon", "image": image}, "steer={'operator': 'cartoon'}; it must be one of"),
        ({"operator": "super_resolution:3", "image": image}, "steer={'operator': 'super_resolution:3'}; it must have"),
        ({"operator": "super_resolution"}, "it must be '' unless images"),
        ({"operator": "greyscale", "image": image}, "it must be another one for images of 1 channels"),
        ({"image": image}, "steer has no 'operator'"),
        ({"operater": "greyscale"}, "steer has 'operater'"),
        ({"operator": "super_resolution", "image": image, "feather": 2.0}, "steer={'feather': 2.0}"),
    ):
        with pytest.raises(ValueError) as caught:
            tim(3, steps=1, steer=steer)
        assert said in str(caught.value), caught.value
    with pytest.raises(ValueError, match="tim\\(…, steer="):
        tim_jax.load(DIGITS, sampling={"steering.operator": "brightness"})


@pytest.mark.slow
def test_a_reward_needs_no_measurement(tim):
    plain = pixels(tim([3, 5], steps=4))
    bright = pixels(tim([3, 5], steps=4, steer={"operator": "brightness", "scale": 4.0, "method": "dps"}))
    assert bright.mean() > plain.mean() + 10


@pytest.mark.slow
def test_samples_become_more_like_a_target(tim, given, tmp_path):
    path, image = classifier_file(tmp_path), Image.open(given / "image.png")
    classifier = rewards.read(tim.run, str(path))
    net = classifier.net(classifier.params)

    def features(images):
        return np.asarray(net(pixels(images)[..., None] / 127.5 - 1).features)

    steer = {"operator": "image_similarity", "target": image, "classifier": str(path), "method": "dps", "scale": 10.0}
    like, free = (features(tim([3, 5], steps=4, steer=each)) @ features([image])[0] for each in (steer, None))
    assert (like > free).all(), (like, free)


@pytest.mark.slow
def test_a_command_restores_what_was_measured_and_says_by_what(given, tmp_path, capsys):
    out = tmp_path / "out"
    sample.main([
        f"--workdir={DIGITS}", f"--target={given / 'small.png'}", "--labels=3,5,8", "--steps=1,3", f"--out={out}",
        "--operator=super_resolution:4", "--config.sampling.steering.method=resample",
    ])  # fmt: skip
    assert capsys.readouterr().out.count("measurements") == 2
    (settings,) = out.glob("*.json")
    record = json.loads(settings.read_text())
    assert record["steering"]["operator"] == "super_resolution:4" and record["steering"]["method"] == "resample"
    assert record["target"].endswith("small.png") and list(out.glob("*_steered.png"))
    (arrays,) = out.glob("*.npz")
    small = np.asarray(Image.open(given / "small.png"), np.float32) / 127.5 - 1
    for steps in (1, 3):
        means = np.load(arrays)[f"steps{steps}"].reshape(3, 2, 4, 2, 4).mean((2, 4))
        np.testing.assert_allclose(means, small[None].repeat(3, axis=0), atol=1e-4)


@pytest.mark.slow
def test_an_image_is_edited_by_another_label(given, tmp_path, capsys):
    image = f"--from={given / 'image.png'}"
    common = [f"--workdir={DIGITS}", image, "--labels=8", "--steps=8", "--config.sampling.sampler=leapfrog"]

    def drawn(name, *further):
        sample.main([*common, *further, f"--out={tmp_path / name}"])
        (arrays,) = (tmp_path / name).glob("*.npz")
        return np.load(arrays)["steps8"][0, ..., 0]

    true = np.asarray(Image.open(given / "image.png"), np.float32) / 127.5 - 1
    np.testing.assert_allclose(drawn("same", "--source=8"), true, atol=1e-3)
    edited = [np.abs(drawn(f"{s}", "--source=3", f"--strength={s}") - true).mean() for s in (0.2, 0.9)]
    assert 0 < edited[0] < edited[1], "a lower strength keeps more"


@pytest.mark.slow
def test_an_evaluation_restores_the_held_out_part(tmp_path):
    evaluate.main([
        f"--workdir={DIGITS}", "--steps=2", "--seeds=1", "--count=40", f"--out={tmp_path}",
        "--config.sampling.steering.operator=box_inpainting:0.5",
    ])  # fmt: skip
    table = json.loads((tmp_path / "any_step.json").read_text())
    assert all(8 < row["psnr"] < 60 for row in table["rows"])
    assert "box_inpainting" in json.dumps(table["protocol"])


@pytest.mark.slow
def test_latents_are_steered_through_their_decoder(published, tmp_path):
    changes = TINY | {"data.height": "8", "data.width": "8", "data.channels": "4", "model.patch_size": "2"}
    folder = workdir(tmp_path / "latents", "digits", **changes)
    with one_device():
        tim = tim_jax.load(folder, codecs={"autoencoder": str(published("autoencoder_kl_tiny"))})
        factor = tim._decoder.factor
        image = RNG.uniform(-0.5, 0.5, (1, 8 * factor, 8 * factor, 3)).astype(np.float32)
        off = []
        for steer in ({"scale": 0.0}, {"scale": 1.0}, {"method": "dps"}):  # without a gradient, and with both kinds
            run = resampled(tim.run, {f"sampling.steering.{k}": str(v) for k, v in steer.items()}
                            | {"sampling.steering.operator": "super_resolution:4"})  # fmt: skip
            aim = open_aim(run, image.shape[1:], image)
            generator = tim._generator(1, None).sampled_by(run.sampling, aim)
            drawn = generator.decode(generator(tim._weights, [3], steps=2))
            off.append(float(aim.off(drawn)[0]))
    assert max(off[1:]) < off[0], off


@pytest.mark.slow
@pytest.mark.parametrize("name", ["brightness", "image_similarity"])
def test_rewards_of_latents_and_their_gradients(published, tmp_path, name):
    """brightness judges what the decoder makes of latents, image_similarity latents, among them that of its target."""
    folder, path = published("autoencoder_kl_tiny"), classifier_file(tmp_path, channels=4)
    vae, params = codecs.load(folder, codecs.AUTOENCODERS)
    image = RNG.uniform(-0.9, 0.9, (1, 16, 16, 3)).astype(np.float32)
    target = vae.apply({"params": params}, image, method="encode")
    x = jnp.concatenate([target, 0.5 * jnp.asarray(RNG.normal(size=target.shape), target.dtype)])
    changes = {"data.height": "4", "data.width": "4", "data.channels": "4", "model.patch_size": "2"}
    changes |= {"codecs.autoencoder": str(folder), "sampling.steering.operator": name}
    if likeness := name == "image_similarity":
        changes |= {"sampling.steering.classifier": str(path)}
    with one_device():
        run = build(load_config("digits", TINY | changes))
        aim = open_aim(run, run.image_shape, target=image if likeness else None)
        loss = jax.jit(aim.recipe(aim.given(np.arange(2), jnp.asarray), {"label": jnp.arange(2)}).loss)
    if likeness:
        features = rewards.read(run, str(path)).net(aim.modules["classifier"])(x).features
        true = features @ features[0]
        assert true[0] == pytest.approx(1, abs=1e-5)
    else:
        true = jnp.clip(vae.apply({"params": params}, x, method="decode"), -1, 1).mean((1, 2, 3))
    np.testing.assert_allclose(loss(x), -true, atol=1e-5)
    gradient = jax.grad(lambda x: loss(x).sum())(x)
    direction = gradient / jnp.linalg.norm(gradient)
    h = 0.02
    difference = (loss(x + h * direction) - loss(x - h * direction)) / (2 * h)
    np.testing.assert_allclose(difference, (gradient * direction).sum((1, 2, 3)), rtol=0.02, atol=1e-5)
    assert difference[1] > 1e-3


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--mask=MASK"], ["sampling.steering.operator is 'inpainting'", "images that are measured"]),
        (["--from=IMAGE", "--labels=3", "--mask=MASK", "--target=IMAGE"], ["--target", "left out with --from"]),
        (
            ["--from=IMAGE", "--labels=3", "--mask=SMALL"],
            ["--mask is 2x2; it must be as large as what 'inpainting' measures, 8x8x1"],
        ),
        (["--from=IMAGE", "--labels=3", "--operator=super_resolution:3"], ["a factor that divides 8 and 8"]),
        (
            ["--target=IMAGE", "--operator=super_resolution:4"],
            ["which is 8x8x1, and would be 2x2x1 of images of 8x8x1"],
        ),
        (
            ["--from=IMAGE", "--labels=3", "--operator=inpainting"],
            ["--operator is 'inpainting'", "no mask, --mask=FILE"],
        ),
        (["--from=IMAGE", "--labels=3", "--operator=super_resolution:0"], ["--operator is 'super_resolution:0'"]),
        (
            ["--from=.", "--labels=3", "--mask=MASK"],
            ["--from has '.', which cannot be read as an image: Is a directory"],
        ),
        (
            ["--from=IMAGE", "--labels=3", "--mask=."],
            ["--mask has '.', which cannot be read as an image: Is a directory"],
        ),
        (["--target=IMAGE"], ["--target is", "it needs --operator"]),
        (["--operator=brightness", "--mask=MASK"], ["--mask is", "left out with the reward"]),
        (["--operator=classifier"], ["sampling.steering.classifier is ''"]),
        (["--operator=image_similarity"], ["'image_similarity'; it must have an image", "--target=IMAGE"]),
        (["--operator=image_similarity", "--target=IMAGE"], ["sampling.steering.classifier is ''"]),
        (["--operator=image_similarity", "--target=nothing.png"], ["--target has 'nothing.png'"]),
        (["--strength=0.5"], ["--strength is 0.5; it needs images"]),
        (["--from=IMAGE", "--labels=3", "--strength=1.5"], ["--strength is 1.5; it must be above 0"]),
        (["--from=IMAGE", "--labels=3", "--strength=0.5", "--start=0.5"], ["--strength is 0.5 and --start is 0.5"]),
        (["--from=IMAGE", "--labels=3", "--source=3,4"], ["--source has 2; it must have one"]),
        (["--from=IMAGE", "--labels=3", "--source=11"], ["--source has 11"]),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(given, tmp_path, arguments, said, capsys):
    for name, file in (("IMAGE", "image.png"), ("MASK", "mask.png"), ("SMALL", "small.png")):
        arguments = [argument.replace(name, str(given / file)) for argument in arguments]
    line = told(sample.main, [f"--workdir={DIGITS}", "--steps=2", f"--out={tmp_path / 'out'}", *arguments], capsys)
    assert all(words in line for words in said), line
    assert not (tmp_path / "out").exists()
