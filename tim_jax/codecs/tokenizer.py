"""Tokenizers turn texts into padded token numbers, by the SentencePiece model of Gemma, or by bytes."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import sentencepiece

from tim_jax.system import hub

FILE = "tokenizer.model"
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
    """A function from texts to Tokens: the token that begins a text, then those of the text.

    Attributes:
        numbers: maps texts to the token numbers of each, all below vocab_size.
        vocab_size: number of different tokens.
        begin: the token before each text.
        pad: the token after it, up to the length that is asked for.
    """

    numbers: Callable[[list[str]], list[list[int]]]
    vocab_size: int
    begin: int
    pad: int

    def count(self, text: str) -> int:
        """Returns the number of tokens of a text, including the one that begins it."""
        return 1 + len(self._checked([text])[0])

    def __call__(self, texts: Sequence[str], length: int, strict: bool = False) -> Tokens:
        """Tokenizes texts.

        Args:
            texts: B texts. The empty text is the token that begins a text.
            length: M, the number of columns. Longer texts lose their end.
            strict: whether empty and longer texts are refused, as they should be where somebody typed them.

        Returns:
            Tokens (B, length).

        Raises:
            ValueError: for something that is no text, and for what `strict` refuses, naming the prompt.
        """
        rows = [[self.begin, *numbers] for numbers in self._checked(texts)]
        ids = np.full((len(rows), length), self.pad, np.int32)
        mask = np.zeros((len(rows), length), bool)
        for i, row in enumerate(rows):
            if strict and not texts[i].strip():
                raise ValueError(f"prompt {i + 1} of {len(rows)} is empty")
            if strict and len(row) > length:
                excess = f"{len(row)} tokens, more than {length}"
                raise ValueError(f"prompt {i + 1} of {len(rows)} has {excess}: {_shown(texts[i])}")
            row = row[:length]
            ids[i, : len(row)], mask[i, : len(row)] = row, True
        return Tokens(ids, mask)

    def _checked(self, texts: Sequence[str]) -> list[list[int]]:
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"prompt {i + 1} of {len(texts)} is {text!r}, which is no text")
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise ValueError(f"prompt {i + 1} of {len(texts)} is no valid text: {_shown(text)}")
        return self.numbers(list(texts))


def open_tokenizer(path: str | pathlib.Path, vocab_size: int | None = None) -> Tokenizer:
    """Opens a SentencePiece model.

    Args:
        path: a tokenizer.model, the folder that holds it, or either on the hub.
        vocab_size: of the text encoder, within which the token numbers must lie; None for no check.

    Raises:
        ValueError: if the file is missing or of another kind, has no token to begin or to pad with, or does not fit.
    """
    path = hub.local(path)
    path = path / FILE if path.is_dir() else path
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); it comes with the text encoder") from None
    except RuntimeError:
        raise ValueError(f"{path}: is truncated or no SentencePiece model") from None
    tokenizer = Tokenizer(model.encode, model.vocab_size(), model.bos_id(), model.pad_id())
    if min(tokenizer.begin, tokenizer.pad) < 0:
        raise ValueError(f"{path}: has no token that begins a text, or none for padding; it is not that of Gemma")
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"{path}: has {tokenizer.vocab_size} tokens, the text encoder only {vocab_size}; they do not belong "
            "together"
        )
    return tokenizer


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
