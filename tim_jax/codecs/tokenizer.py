"""Tokenizers turn texts into padded token numbers: by a SentencePiece model, as Gemma has it, by a tokenizer.json, as
BERT has it, or by bytes."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import sentencepiece
from absl import logging

from tim_jax.codecs import packaged

# Of a published folder, the first that is there: a SentencePiece model, or what the package tokenizers reads.
FILES = ("tokenizer.model", "tokenizer.json")
SHOWN = 60  # characters of a prompt that an error shows


class Tokens(NamedTuple):
    """Tokens of B texts.

    Attributes:
        ids: (B, M) int32, padded on the right.
        mask: (B, M) bool, False at padding.
    """

    ids: np.ndarray
    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A function from texts to Tokens: the token that begins a text, those of the text, and that which ends it.

    Attributes:
        numbers: maps texts to the token numbers of each, all below vocab_size.
        vocab_size: number of different tokens.
        begin: the token before each text.
        pad: the token after it, up to the length that is asked for.
        end: the token, if any, that follows each text before those of padding.
        unknown: the token, if any, of all words that have none of their own.
    """

    numbers: Callable[[list[str]], list[list[int]]]
    vocab_size: int
    begin: int
    pad: int
    end: int | None = None
    unknown: int | None = None

    def count(self, text: str) -> int:
        """Returns the number of tokens of a text, including those that begin and end it."""
        return 1 + len(self._checked([text])[0]) + len(self._end)

    @property
    def _end(self) -> list[int]:
        return [] if self.end is None else [self.end]

    def __call__(self, texts: Sequence[str], length: int, strict: bool = False) -> Tokens:
        """Tokenizes texts.

        Args:
            texts: B texts. The empty text is the token that begins a text, and that which ends it.
            length: M, the number of columns. Longer texts lose their last words.
            strict: whether empty and longer texts are refused, as they should be where somebody typed them.

        Returns:
            Tokens (B, length).

        Raises:
            ValueError: for something that is no text, and for what `strict` refuses, naming the prompt.
        """
        rows = self._checked(texts)
        ids = np.full((len(rows), length), self.pad, np.int32)
        mask = np.zeros((len(rows), length), bool)
        for i, row in enumerate(rows):
            if strict and not texts[i].strip():
                raise ValueError(f"prompt {i + 1} of {len(rows)} is empty")
            count = 1 + len(row) + len(self._end)
            if strict and count > length:
                excess = f"{count} tokens, more than {length}"
                raise ValueError(f"prompt {i + 1} of {len(rows)} has {excess}: {_shown(texts[i])}")
            if strict and self.unknown in row:
                shown = f"prompt {i + 1} of {len(rows)}, {_shown(texts[i])}"
                logging.warning("%s, has words or signs that the text encoder does not know", shown)
            row = [self.begin, *row[: length - 1 - len(self._end)], *self._end]
            ids[i, : len(row)], mask[i, : len(row)] = row, True
        return Tokens(ids, mask)

    def _checked(self, texts: Sequence[str]) -> list[list[int]]:
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"prompt {i + 1} of {len(texts)} is {text!r}, which is no text")
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise ValueError(f"prompt {i + 1} of {len(texts)} is no valid text: {_shown(text)}")
        return self.numbers(list(texts))


def file_in(folder: pathlib.Path) -> pathlib.Path:
    """Returns the tokenizer of a published folder, which need not be there."""
    return next((folder / name for name in FILES if (folder / name).exists()), folder / FILES[0])


def open_tokenizer(path: str | pathlib.Path, vocab_size: int | None = None) -> Tokenizer:
    """Opens the tokenizer of a published text encoder.

    Args:
        path: a tokenizer.model or tokenizer.json, the folder that holds it, either on the hub, or a name of
            `packaged.PACKAGES`.
        vocab_size: of the text encoder, within which the token numbers must lie; None for no check.

    Raises:
        ValueError: if the file is missing or of another kind, has no token to begin or to pad with, or does not fit;
            or if the package that reads it is not installed.
    """
    path = packaged.local(path)
    path = file_in(path) if path.is_dir() else path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); it comes with the text encoder") from None
    tokenizer = (_wordpiece if path.suffix == ".json" else _sentencepiece)(path, content)
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"{path}: has {tokenizer.vocab_size} tokens, the text encoder only {vocab_size}; they do not belong "
            "together"
        )
    return tokenizer


def _sentencepiece(path: pathlib.Path, content: bytes) -> Tokenizer:
    """The tokenizer of Gemma."""
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError:
        raise ValueError(f"{path}: is truncated or no SentencePiece model") from None
    tokenizer = Tokenizer(model.encode, model.vocab_size(), model.bos_id(), model.pad_id())
    if min(tokenizer.begin, tokenizer.pad) < 0:
        raise ValueError(f"{path}: has no token that begins a text, or none for padding; it is not that of Gemma")
    return tokenizer


def _wordpiece(path: pathlib.Path, content: bytes) -> Tokenizer:
    """The tokenizer of BERT."""
    try:
        import tokenizers
    except ImportError:
        raise ValueError(f"{path}: is read by the package tokenizers; pip install tokenizers") from None
    try:
        model = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(f"{path}: is truncated or no tokenizer ({str(error)[:SHOWN]})") from None
    model.no_truncation()
    model.no_padding()
    frame, pad = model.encode("").ids, model.token_to_id("[PAD]")
    if len(frame) != 2 or pad is None:
        raise ValueError(
            f"{path}: has no tokens that begin and end a text, or none for padding; it is not that of BERT"
        )
    numbers = lambda texts: [model.encode(text, add_special_tokens=False).ids for text in texts]  # noqa: E731
    return Tokenizer(numbers, model.get_vocab_size(), frame[0], pad, frame[1], model.token_to_id("[UNK]"))


def escaped(tokenizer: Tokenizer) -> Tokenizer:
    """Returns a tokenizer of texts with Python's Unicode escapes, by which the published code reads captions.

    Every character beyond printable ASCII, line ends and backslashes among them, becomes its escape: "\\xe4" of "ä".
    """
    return dataclasses.replace(
        tokenizer,
        numbers=lambda texts: tokenizer.numbers([text.encode("unicode_escape").decode("ascii") for text in texts]),
    )


def _bytes(texts: list[str]) -> list[list[int]]:
    return [[2 + byte for byte in text.encode()] for text in texts]


BYTES = Tokenizer(_bytes, vocab_size=2 + 256, begin=1, pad=0)  # each byte of a text in UTF-8 is a token


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…")
