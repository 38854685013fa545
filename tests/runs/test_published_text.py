"""Captions as the published code reads them: trimmed to the longest of a batch, without a mask, with escapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import workdirs
from tim_jax.codecs.tokenizer import BYTES, escaped
from tim_jax.config.build import build
from tim_jax.runs import workdir
from tim_jax.runs.encoders import open_text_encoder
from tim_jax.runs.generation import Generator, load_weights
from tim_jax.training.nets import text_conditions, up_to_longest
from tim_jax.types import Query

SHORT, LONG = "a cat", "an orange dahlia, a photograph"
PUBLISHED = {"model.use_text_mask": "False", "codecs.text_escapes": "True"}

ESCAPES = {
    "a red bicycle": "a red bicycle",
    "": "",
    "Bär": r"B\xe4r",
    "café – 中": r"caf\xe9 \u2013 \u4e2d",
    "🚲": r"\U0001f6b2",
    "two\nlines\tand \\": r"two\nlines\tand \\",
    "\u007f": r"\x7f",
}


def test_escapes_are_pythons():
    texts, expected = list(ESCAPES), list(ESCAPES.values())
    for found, right in zip(escaped(BYTES)(texts, 40), BYTES(expected, 40), strict=True):
        np.testing.assert_array_equal(found, right)
    assert escaped(BYTES).count("ä") == 1 + len(r"\xe4") and BYTES.count("ä") == 3


def test_masks_reach_to_the_longest_text_of_the_batch():
    lengths = np.array([3, 1, 5, 2])
    mask = np.arange(7)[None] < lengths[:, None]
    found = np.asarray(up_to_longest(jnp.asarray(mask)))
    np.testing.assert_array_equal(found, np.tile(np.arange(7) < 5, (4, 1)))


def test_training_conditions_are_the_published_ones():
    """Dropped captions are empty before the longest is looked for, and have its padding; so has the null condition."""
    rng = np.random.default_rng(0)
    lengths = np.array([3, 6, 5, 2])
    batch = {
        "text": rng.normal(size=(4, 7, 2)).astype(np.float32),
        "mask": np.arange(7)[None] < lengths[:, None],
        "null_text": rng.normal(size=(1, 7, 2)).astype(np.float32),
        "null_mask": np.arange(7)[None] < 1,
    }
    is_null = np.array([False, True, False, False])
    condition, null = text_conditions(own_mask=False)({name: jnp.asarray(x) for name, x in batch.items()}, is_null)
    trimmed = np.tile(np.arange(7) < 5, (4, 1))  # the longest caption, of 6 tokens, was dropped
    np.testing.assert_array_equal(condition["mask"], trimmed)
    np.testing.assert_array_equal(null["mask"], trimmed)
    for i in range(4):
        np.testing.assert_array_equal(condition["text"][i], batch["null_text"][0] if i == 1 else batch["text"][i])
        np.testing.assert_array_equal(null["text"][i], batch["null_text"][0])
    own, null = text_conditions()({name: jnp.asarray(x) for name, x in batch.items()}, is_null)
    np.testing.assert_array_equal(own["mask"].sum(1), [3, 1, 5, 2])
    np.testing.assert_array_equal(null["mask"].sum(1), [1] * 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return workdirs.workdir(tmp_path_factory.mktemp("published") / "run", "photos_t2i", **workdirs.TEXT, **PUBLISHED)


@pytest.mark.nightly
def test_samples_attend_to_as_many_tokens_as_the_longest_prompt_has(folder):
    """One step, guided, is x − F₀ − 2 (F_c − F₀): by features that are cut, of which all are attended to."""
    scale = 2.0
    config = workdir.load(folder, {"sampling.guidance": str(scale)})
    run = build(config, jax.devices()[:1])
    texts = open_text_encoder(run)
    weights, _ = load_weights(run, folder)
    net = jax.jit(lambda query: run.net(weights)((query,))[0].F)

    def cut(features, tokens):
        return {"text": jnp.asarray(features[:, :tokens]), "mask": jnp.ones((1, tokens), bool)}

    def expected(prompt, number, tokens):
        x = jnp.asarray(generator.noise(7, 1, first=number))
        one, zero = jnp.ones(1), jnp.zeros(1)
        guided, unguided = (
            net(Query(x, one, zero, cut(np.asarray(features), tokens)))
            for features in (texts([prompt])["text"], texts.null["text"])
        )
        return np.asarray(x - unguided - scale * (guided - unguided))[0]

    def samples(prompts):
        return generator(weights, prompts, steps=1, seed=7)

    short, long = (texts.tokenizer.count(prompt) for prompt in (SHORT, LONG))
    assert short < long < texts.length
    generator = Generator(run, 2, texts)
    alone, together = samples([SHORT, SHORT]), samples([SHORT, LONG])
    np.testing.assert_allclose(alone[0], expected(SHORT, 0, short), atol=1e-4)
    np.testing.assert_allclose(together[0], expected(SHORT, 0, long), atol=1e-4)
    np.testing.assert_allclose(together[1], expected(LONG, 1, long), atol=1e-4)
    assert np.abs(alone[0] - together[0]).max() > 1e-2
