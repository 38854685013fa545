"""Protocols: recorded with every figure, named only where all of it is as there, and refused where it differs."""

import json
import types
from dataclasses import replace

import pytest

from tests.helpers.configs import TINY_NETWORK
from tests.helpers.workdirs import one_device
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.evaluation import anystep, protocol
from tim_jax.evaluation.protocol import NAMED, Protocol
from tim_jax.runs.measuring import protocol_of
from tim_jax.transitions.sampling.settings import Sampling

REFERENCE = {
    "data": "VIRTUAL_imagenet256_labeled.npz 0123", "split": "all", "images": 10_000, "size": "256x256x3",
    "preprocessing": "8 bits, bilinear to 299 as in TensorFlow 1", "features": "inception ab", "rows": 10_000,
}  # fmt: skip
ADM = Protocol(REFERENCE, None, "balanced", "8 bits", 50_000, (0,), "slow", "flow_map", "uniform")
OWN = REFERENCE | {"data": "digits ab", "split": "train", "features": "pixels", "preprocessing": "8 bits"}
DINO = REFERENCE | {"features": "dinov2 ViT-L/14 ab", "split": "train"}
PUBLISHED = {
    "adm": ADM,
    "fd-dinov2": replace(ADM, reference=DINO),
    "pixels": replace(ADM, reference=OWN, labels="data", samples=1442),
}


def test_a_protocol_has_a_name_only_where_all_of_it_is_as_there():
    assert PUBLISHED.keys() == NAMED.keys()
    for name, known in PUBLISHED.items():
        assert known.name == name and f"Protocol {name}: " in known.line
        assert replace(known, weights="online", guidance=2.0, seeds=(1, 2)).name == name, (
            "models are sampled as they are"
        )
        assert replace(known, levels="as drawn").name is None


@pytest.mark.parametrize(
    "change, said",
    [
        ({"samples": 5000}, "as adm, but for 5,000 samples in place of 50,000"),
        ({"labels": "data"}, "as adm, but for labels data in place of balanced"),
        ({"reference": REFERENCE | {"split": "train"}}, "as adm, but for no published reference batch"),
        (
            {"reference": DINO | {"features": "dinov2 ViT-B/14 ab"}},
            "as fd-dinov2, but for dinov2 ViT-B/14 ab in place of",
        ),
        ({"reference": OWN, "labels": "balanced"}, "as pixels, but for labels balanced in place of data"),
    ],
)
def test_what_is_otherwise_is_said(change, said):
    other = replace(ADM, **change)
    assert other.name is None and said in other.line


def test_the_line_says_all_of_it():
    guided = replace(ADM, guidance=1.5, guidance_interval=(0.1, 0.8), guidance_ends="excluded", seeds=(0, 1, 2),
                     stochasticity=0.2, stochastic="euler", held_out=DINO)  # fmt: skip
    for word in ("50,000 samples", "8 bits", "every label alike", "10,000 images", REFERENCE["data"], "256x256x3",
                 "inception ab", "bilinear to 299", "weights slow", "flow_map", "uniform", "guidance 1.5",
                 "[0.1, 0.8]", "without its ends", "seeds 0 to 2", "stochasticity 0.2 (euler)", "twice"):  # fmt: skip
        assert word in guided.line, word
    assert "\n" not in guided.line
    assert protocol.read(json.loads(json.dumps(guided.record()))) == guided


CHANGES = {
    "reference": REFERENCE | {"features": "inception cd"}, "held_out": OWN | {"features": "x"}, "labels": "data",
    "levels": "as drawn", "samples": 49_999, "nfe": "another",
}  # fmt: skip


@pytest.mark.parametrize("key", protocol.MEASURED)
def test_figures_of_different_protocols_are_not_compared(key, tmp_path):
    rows = [{"nfe": n, "frechet": 1.0 / n, "frechet_spread": 0.1} for n in (1, 2)]
    mine = replace(ADM, held_out=OWN)
    tables = {name: {"rows": rows, "floor": {}, "monotone": {"metric": "frechet"}, "protocol": each.record()}
              for name, each in (("a", mine), ("b", replace(mine, seeds=(5,), weights="online", guidance=2.0)),
                                 ("c", replace(mine, **{key: CHANGES[key]})))}  # fmt: skip
    assert protocol.differences({name: tables[name] for name in "ab"}) == [], "what is compared may differ"
    (line,) = protocol.differences(tables)
    with pytest.raises(ValueError, match="cannot be compared") as error:
        anystep.plot(tables, tmp_path / "x.png")
    assert str(error.value) == line and "\n" not in line and "c" in line
    assert (key if key not in protocol.REFERENCES else "features") in line
    assert not list(tmp_path.iterdir())


def test_every_field_of_sampling_is_in_the_protocol():
    """Each of these changes what is drawn, and so the protocol."""
    run = made()

    def of(network=None, **sampling):
        return protocol_of(replace(run, sampling=Sampling(**sampling), refiner=network), 10, [0])

    usual = {"guidance": 2.0, "stochasticity": 0.1, "grid": "shifted"}
    for change in ({"ema": "online"}, {"sampler": "euler"}, {"grid": "edm"}, {"shift": 2.0}, {"guidance": 1.0},
                   {"guidance_low": 0.1}, {"guidance_high": 0.8}, {"exclusive_ends": True}, {"stochasticity": 0.2},
                   {"stochastic": "euler"}, {"grid": "optimal"}, {"plan": "learned"},
                   {"guidance_input": True}):  # fmt: skip
        assert of(**(usual | change)) != of(**usual), change
    assert of(guidance_low=0.0) == of(guidance_low=0.5), "an interval does nothing at guidance 1"
    assert of(grid="optimal", optimal_times={1: (1.0, 0.0)}) != of(grid="optimal", optimal_times={1: (1.0, 0.1)})
    # Not where the refiner lies, but what its weights are.
    refined = {"sampler": "flowturbo", "pattern": "H1R", "refiner": "runs/refiner"}
    refiners = [types.SimpleNamespace(source=types.SimpleNamespace(fingerprint=text)) for text in ("a", "b")]
    assert of(refiners[0], **refined) != of(refiners[1], **refined)
    assert of().labels == "data"


def made():
    with one_device():
        return build(load_config("digits", TINY_NETWORK))
