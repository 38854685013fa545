"""How many programs are made: JAX's own count of a function's can be 0 in a process that has made very many."""

import functools

import pytest

from tim_jax.runs.generation import Generator


@pytest.fixture
def traced(monkeypatch):
    """A list of the generators that have traced a program, once for each."""
    found, batch = [], Generator._batch

    @functools.wraps(batch)
    def counted(*args):
        found.append(args[0])
        return batch(*args)

    monkeypatch.setattr(Generator, "_batch", counted)
    return found
