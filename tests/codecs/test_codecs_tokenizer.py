"""Captions and prompts to tokens, by small models of the forms that Gemma's and BERT's have."""

import io
import sys

import numpy as np
import pytest
import sentencepiece
import tokenizers

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


def wordpiece():
    """A tokenizer as BERT has it, of WORDS and of the ends "##s" and "##ing"."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(WORDS), "##s", "##ing", "!"]
    numbers = {word: i for i, word in enumerate(words)}
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece(numbers, unk_token="[UNK]"))
    model.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    frame = [(word, numbers[word]) for word in ("[CLS]", "[SEP]")]
    model.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=frame)
    model.enable_padding(length=5)  # published files say to how many tokens they pad and cut
    model.enable_truncation(6)
    return model, numbers


@pytest.fixture
def bert(tmp_path):
    (tmp_path / "tokenizer.json").write_text(wordpiece()[0].to_str())
    return tmp_path


def test_word_pieces_stand_between_two_tokens(bert):
    model, numbers = wordpiece()
    tokenizer = open_tokenizer(bert, vocab_size=len(numbers))
    texts = ["A reds zebra", "", "sleeping CATS! in the garden of an old house", "a bicycle 🚲"]
    ids, mask = tokenizer(texts, 14)
    model.no_padding()
    model.no_truncation()
    for text, row, there in zip(texts, ids, mask, strict=True):
        theirs = model.encode(text).ids
        assert row[there].tolist() == theirs and not row[~there].any() and tokenizer.count(text) == len(theirs)
        assert (row[0], row[there][-1]) == (numbers["[CLS]"], numbers["[SEP]"])
    assert ids[0, :7].tolist() == [numbers[w] for w in ("[CLS]", "a", "red", "##s", "[UNK]", "[SEP]", "[PAD]")]


def test_long_captions_lose_words_but_not_the_token_that_ends_them(bert):
    tokenizer = open_tokenizer(bert)
    whole, _ = tokenizer(["a red bicycle leans on"], 16)
    ids, mask = tokenizer(["a red bicycle leans on"], 5)
    assert ids[0].tolist() == [*whole[0, :4], whole[0, 6]] and mask.all()


def test_words_that_a_prompt_has_and_the_tokenizer_does_not_are_told(bert, caplog):
    tokenizer = open_tokenizer(bert)
    tokenizer(["a red house", "a zebra"], 8)
    assert not caplog.text
    tokenizer(["a red house", "a zebra"], 8, strict=True)
    assert "prompt 2 of 2, 'a zebra', has words or signs that the text encoder does not know" in caplog.text


def test_a_tokenizer_json_that_does_not_fit_is_refused(bert, monkeypatch):
    with pytest.raises(ValueError, match="they do not belong together"):
        open_tokenizer(bert, vocab_size=9)
    model, _ = wordpiece()
    model.post_processor = tokenizers.processors.ByteLevel()
    (bert / "tokenizer.json").write_text(model.to_str())
    with pytest.raises(ValueError, match="it is not that of BERT"):
        open_tokenizer(bert)
    for content in (b"{}", b"\xff\xfe", b""):
        (bert / "tokenizer.json").write_bytes(content)
        with pytest.raises(ValueError, match="is truncated or no tokenizer") as error:
            open_tokenizer(bert)
        assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match="is read by the package tokenizers; pip install tokenizers"):
        open_tokenizer(bert)


def test_of_two_tokenizers_in_a_folder_the_sentencepiece_model_is_read(bert):
    (bert / "tokenizer.model").write_bytes(trained())
    assert open_tokenizer(bert).vocab_size == 320


def test_bytes_are_the_text_as_utf_8_has_it():
    texts = ["a red bicycle", "Ünïcode  🚲\n", ""]
    ids, mask = BYTES(texts, 32)
    for text, row, there in zip(texts, ids, mask, strict=True):
        assert bytes((row[there][1:] - 2).tolist()).decode() == text and row[0] == BYTES.begin
        assert there.sum() == BYTES.count(text) and not row[~there].any()
    assert ids.max() < BYTES.vocab_size
