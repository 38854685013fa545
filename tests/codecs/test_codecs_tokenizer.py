"""Captions and prompts to tokens, by a small model of the form that Gemma's has."""

import io

import numpy as np
import pytest
import sentencepiece

from tim_jax.codecs.tokenizer import BYTES, open_tokenizer

WORDS = "a red bicycle leans on the wall of an old house while two dogs and one cat sleep in its garden".split()
TEXTS = [" ".join(np.random.default_rng(i).permutation(WORDS)) for i in range(40)]


def trained(**options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **{"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3} | options,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.model").write_bytes(trained())
    return folder


def test_tokens_are_the_text_after_one_that_begins_it(folder):
    tokenizer = open_tokenizer(folder, vocab_size=320)
    texts = ["a red bicycle", "Ünïcode  twice\n", ""]
    ids, mask = tokenizer(texts, 64)
    assert ids.dtype == np.int32 and ids.shape == mask.shape == (3, 64)
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for text, row, there in zip(texts, ids, mask, strict=True):
        count = tokenizer.count(text)
        assert there.tolist() == [True] * count + [False] * (64 - count)  # padded on the right
        assert row[0] == 2 and not row[count:].any()
        assert model.decode(row[1:count].tolist()) == text
    assert tokenizer.count("") == 1


def test_long_captions_lose_their_end(folder):
    tokenizer = open_tokenizer(folder)
    text = " ".join(WORDS)
    whole = tokenizer([text], 64).ids[0, :5]
    ids, mask = tokenizer([text], 5)
    np.testing.assert_array_equal(ids[0], whole)
    assert mask.all() and tokenizer.count(text) > 5


@pytest.mark.parametrize(
    "texts, message",
    [
        (["fine", ""], "prompt 2 of 2 is empty"),
        ([" \n"], "prompt 1 of 1 is empty"),
        (["a", " ".join(WORDS)], r"prompt 2 of 2 has \d+ tokens, more than 8: 'a red .*…'"),
        (["a", 3], "prompt 2 of 2 is 3, which is no text"),
        ([None], "prompt 1 of 1 is None, which is no text"),
        (["\ud83d"], "prompt 1 of 1 is no valid text"),
    ],
)
def test_prompts_that_cannot_be_are_named(folder, texts, message):
    with pytest.raises(ValueError, match=message) as error:
        open_tokenizer(folder)(texts, 8, strict=True)
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_does_not_fit_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="has 320 tokens, the text encoder only 319"):
        open_tokenizer(folder, vocab_size=319)
    with pytest.raises(ValueError, match="cannot be read"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes()[:-50])
    with pytest.raises(ValueError, match="is truncated or no SentencePiece model"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(trained(pad_id=-1))
    with pytest.raises(ValueError, match="has no token that begins a text, or none for padding"):
        open_tokenizer(tmp_path)


def test_bytes_are_the_text_as_utf_8_has_it():
    texts = ["a red bicycle", "Ünïcode  🚲\n", ""]
    ids, mask = BYTES(texts, 32)
    for text, row, there in zip(texts, ids, mask, strict=True):
        assert bytes((row[there][1:] - 2).tolist()).decode() == text and row[0] == BYTES.begin
        assert there.sum() == BYTES.count(text) and not row[~there].any()
    assert ids.max() < BYTES.vocab_size
