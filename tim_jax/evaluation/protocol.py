"""Protocols: what figures were measured by and how their samples were drawn, recorded with every figure.

Figures can be compared where they were measured alike (MEASURED); how samples were drawn may be what is compared. A
protocol that is somebody's has a name (NAMED), which it bears only if all of it is as there.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tim_jax.evaluation import references

NFE = "network evaluations per image; one with guidance counts twice"
EIGHT_BITS, AS_DRAWN = "8 bits", "as drawn"
MEASURED = ("reference", "held_out", "labels", "levels", "samples", "nfe")  # fields that must agree
REFERENCES = {"reference": "the reference", "held_out": "the held-out part"}  # which are fingerprints
ALL = "all"  # the split of a published reference batch


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What figures were measured by.

    Attributes:
        reference: fingerprint of the real images that samples are compared with, their size, preprocessing and feature
            network (see references.py); None of samples that are only written.
        held_out: fingerprint of the held-out part; None if there is none.
        labels: of samples, "data": as often as in the data, "balanced": every label alike, "captions": captions,
            "truths": those of the images that are restored.
        levels: EIGHT_BITS of images that are rounded as files hold them, or AS_DRAWN of latents.
        samples: how many, for each step count and seed.
        seeds: of the noise; sample i of a seed has the same noise and condition at every step count.
        weights: the name of an EMA, or "online".
        sampler: the sampler.
        grid: of its times.
        guidance: the scale; 1 for none.
        guidance_interval: in which guidance acts, as fractions of T_max; None where there is none.
        guidance_channels: of the prediction that it acts on, the first so many; 0: on all.
        guidance_ends: whether the interval's ends are "included" or "excluded"; None where there is none.
        guidance_input: whether the network takes the scale as an input, so that guidance costs nothing.
        stochasticity: of the flow map; 0 for none.
        stochastic: how it takes fresh noise; None where it takes none.
        sampler_settings: the settings that the sampler takes, such as its noise scale.
        nfe: how network evaluations are counted.
    """

    reference: Mapping[str, Any] | None
    held_out: Mapping[str, Any] | None
    labels: str
    levels: str
    samples: int
    seeds: tuple[int, ...]
    weights: str
    sampler: str
    grid: str
    guidance: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    guidance_channels: int = 0
    guidance_ends: str | None = None
    guidance_input: bool = False
    stochasticity: float = 0.0
    stochastic: str | None = None
    sampler_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    nfe: str = NFE

    @property
    def name(self) -> str | None:
        """Whose protocol it is, a name in NAMED; None of one that has no name."""
        return next((name for name, named in NAMED.items() if not named.missing(self)), None)

    def record(self) -> dict[str, Any]:
        """The protocol as JSON holds it, with its name and its one line."""
        found = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}
        found |= {key: found[key] and dict(found[key]) for key in REFERENCES}
        found["sampler_settings"] = dict(self.sampler_settings)
        return {"name": self.name, **found, "line": self.line}

    @property
    def line(self) -> str:
        """The protocol in one line, as it stands under tables."""
        seeds = f"noise seed{'s' * (len(self.seeds) > 1)} {_ranges(self.seeds)}"
        return f"{self.measured}; weights {self.weights}, {self.sampling}, {seeds}. NFE: {self.nfe}."

    @property
    def measured(self) -> str:
        """The part of the line that must agree where figures are compared."""
        rounded = "rounded to 8 bits" if self.levels == EIGHT_BITS else self.levels
        samples = f"Protocol{self._title}: {self.samples:,} samples {rounded}, {LABELS[self.labels]}"
        if self.reference is None:
            return samples
        of = self.reference
        held = f" and {_images(self.held_out)}" if self.held_out else ""
        return (
            f"{samples}; against {_images(of)}{held}, {of['size']}; by {of['features']} ({of['preprocessing']}), "
            f"kernel distances, precision and recall of at most {of['rows']:,} images"
        )

    @property
    def sampling(self) -> str:
        """How samples are drawn, but for weights and noise."""
        settings = ", ".join(f"{key} {value}" for key, value in self.sampler_settings.items())
        sampler = f"{self.sampler} ({settings})" if settings else self.sampler
        parts = [f"{sampler} on the grid {self.grid}", f"guidance {self.guidance:g}"]
        if self.guidance_interval:
            low, high = self.guidance_interval
            ends = "without its ends" if self.guidance_ends == "excluded" else ""
            parts[-1] += f" in [{low:g}, {high:g}]{' ' * bool(ends)}{ends}"
        if self.guidance_channels:
            parts[-1] += f" on the first {self.guidance_channels} channels"
        if self.guidance_input:
            parts[-1] += " as an input of the network"
        if self.stochastic:
            parts.append(f"stochasticity {self.stochasticity:g} ({self.stochastic})")
        return ", ".join(parts)

    @property
    def _title(self) -> str:
        """Its name, or what it lacks of one that is measured by the same features."""
        if self.name:
            return f" {self.name}"
        near = [(named.missing(self), name) for name, named in NAMED.items() if named.is_near(self)]
        return "".join(f" (as {name}, but for {', '.join(missing)})" for missing, name in sorted(near)[:1])


class Named(NamedTuple):
    """A protocol that has a name, by what is fixed in it; None where anything goes.

    Attributes:
        features: what the name of the feature network begins with.
        batch: whether the reference is a published batch (True), or a part of the run's own data (False).
        labels: of samples.
        samples: how many.
    """

    features: str
    batch: bool | None
    labels: str | None
    samples: int | None

    def is_near(self, protocol: Protocol) -> bool:
        """Whether a protocol measures by the same features, if not in the same way."""
        of = protocol.reference
        return of is not None and str(of["features"]).split()[0] == self.features.split()[0]

    def missing(self, protocol: Protocol) -> list[str]:
        """What of a protocol is otherwise, in words; [] if it is this one."""
        of, found = protocol.reference, []
        if of is None:
            return ["nothing is measured"]
        if not f"{of['features']} ".startswith(f"{self.features} "):
            found.append(f"{of['features']} in place of {self.features}")
        if self.batch is not None and self.batch != (of["split"] == ALL):
            found.append(f"{'no ' * self.batch}published reference batch")
        if self.labels not in (None, protocol.labels):
            found.append(f"labels {protocol.labels} in place of {self.labels}")
        if self.samples not in (None, protocol.samples):
            found.append(f"{protocol.samples:,} samples in place of {self.samples:,}")
        if protocol.levels != EIGHT_BITS:
            found.append(f"samples {protocol.levels} in place of 8 bits")
        return found


# Dhariwal & Nichol 2021 (ADM), and Stein et al. 2023; pixels of small images against the run's own training part.
NAMED = {
    "adm": Named("inception", True, "balanced", 50_000),
    "fd-dinov2": Named("dinov2 ViT-L/14", None, None, 50_000),
    "pixels": Named("pixels", False, "data", None),
}
LABELS = {
    "data": "labels as often as in the data",
    "balanced": "every label alike",
    "captions": "captions of the data",
    "truths": "labels or captions of the images that they restore",
}


def read(record: Mapping[str, Any]) -> Protocol:
    """The protocol that a table has recorded (see `Protocol.record`)."""
    names = [field.name for field in dataclasses.fields(Protocol) if field.name in record]
    found: dict[str, Any] = {name: tuple(v) if isinstance(v := record[name], list) else v for name in names}
    return Protocol(**found)


def check_same(found: Mapping[str, Any], expected: Mapping[str, Any], names: tuple[str, str]) -> None:
    """Checks that two tables were measured alike, as far as they say so.

    Args:
        found: a table.
        expected: another one.
        names: what the two are called.

    Raises:
        ValueError: in one line that names the first difference.
    """
    a, b = measured(found), measured(expected)
    for key in (key for key in MEASURED if key in a and key in b):
        if key in REFERENCES:
            references.check_same(a[key], b[key], f"{REFERENCES[key]} of {names[0]}")
        elif a[key] != b[key]:
            raise ValueError(
                f"{names[0]} was measured with {key} {a[key]!r}, {names[1]} with {b[key]!r}: they cannot be compared"
            )


def differences(tables: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines that say which tables were measured unlike the first, and in what; [] if all agree."""
    (first, expected), *others = tables.items() if tables else [("", {})]
    found = []
    for name, table in others:
        try:
            check_same(table, expected, (name, first))
        except ValueError as error:
            found.append(str(error))
    return found


def measured(table: Mapping[str, Any]) -> dict[str, Any]:
    """What a table says of how it was measured; those of earlier versions have no protocol, and say less."""
    said = {key: table[key] for key in ("reference", "labels", "samples") if table.get(key) is not None}
    said |= {key: value for key, value in table.get("protocol", {}).items() if key in MEASURED and value is not None}
    return said


def _images(of: Mapping[str, Any]) -> str:
    count = f"{of['images']:,} images" if of["images"] else "moments"
    return f"{count} of {of['data']}{'' if of['split'] == ALL else ', ' + str(of['split'])}"


def _ranges(seeds: Iterable[int]) -> str:
    seeds = sorted(seeds)
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))
