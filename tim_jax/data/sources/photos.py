"""Small native-resolution data with class labels and captions: crops at many aspect ratios from ten colour photographs.

The photographs come with scikit-image and scikit-learn; their crops are written once as a TensorFlow Datasets data set.
"""

import io
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from tim_jax.data.sources.base import InMemory, Location, Source
from tim_jax.data.sources.tfds import open_prepared, prepare


def of_skimage(name: str) -> Callable[[], np.ndarray]:
    """Returns the function that loads a photograph of scikit-image."""

    def load() -> np.ndarray:
        import skimage.data  # slow to import, and needed only where the data set is not there yet

        found = getattr(skimage.data, name)()
        return found[0] if isinstance(found, tuple) else found  # the first of a stereo pair

    return load


def of_sklearn(name: str) -> Callable[[], np.ndarray]:
    """Returns the function that loads a photograph of scikit-learn."""

    def load() -> np.ndarray:
        from sklearn.datasets import load_sample_image  # as above

        return load_sample_image(name)

    return load


# class -> (what loads the photograph, what it shows)
PHOTOGRAPHS = {
    "astronaut": (of_skimage("astronaut"), "an astronaut in an orange suit"),
    "cat": (of_skimage("chelsea"), "a tabby cat"),
    "coffee": (of_skimage("coffee"), "a cup of coffee on a wooden table"),
    "flower": (of_sklearn("flower.jpg"), "an orange dahlia"),
    "galaxies": (of_skimage("hubble_deep_field"), "galaxies in the dark sky"),
    "motorcycle": (of_skimage("stereo_motorcycle"), "a motorcycle in a garage"),
    "retina": (of_skimage("retina"), "the retina of an eye"),
    "rocket": (of_skimage("rocket"), "a rocket on its launch pad"),
    "temple": (of_sklearn("china.jpg"), "a Chinese temple with curved roofs"),
    "tissue": (of_skimage("immunohistochemistry"), "stained tissue under a microscope"),
}
CROPS = {"train": 200, "held_out": 40}
ASPECTS = (0.4, 2.5)  # height over width
SIDES = (48, 128)  # square root of the area, in pixels
LONGEST = 512  # pixels of the longer side that photographs are first shrunk to
# The range of a crop's sides, as shares of the largest rectangle of its aspect ratio that the photograph holds.
SHARES = (0.5, 1.0)


def captions(label: str, height: int, width: int) -> list[str]:
    """Three captions of a crop of the photograph `label`, one of which tells its form."""
    thing = PHOTOGRAPHS[label][1]
    form = "tall" if height > 1.25 * width else "wide" if width > 1.25 * height else "nearly square"
    return [f"a photograph of {thing}", thing, f"a {form} picture of {thing}"]


def crop(photograph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random crop of a photograph, shrunk but never enlarged; its aspect ratio and area are log-uniform."""
    aspect, side = (float(np.exp(rng.uniform(*np.log(bounds)))) for bounds in (ASPECTS, SIDES))
    w, h = photograph.size
    part_w = min(w, h / aspect) * rng.uniform(*SHARES)
    part_h = part_w * aspect
    left, top = rng.uniform(0, w - part_w), rng.uniform(0, h - part_h)
    scale = min(1.0, side / np.sqrt(part_h * part_w))
    size = max(1, round(part_w * scale)), max(1, round(part_h * scale))
    box = (left, top, left + part_w, top + part_h)
    return photograph.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=2.0)


class Photos(tfds.core.GeneratorBasedBuilder):
    """The splits `train` and `held_out`, different crops of the same photographs; the classes take turns."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # see Digits

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Crops at many aspect ratios from the photographs inside scikit-image and scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=list(PHOTOGRAPHS)),
                    "captions": tfds.features.Sequence(tfds.features.Text()),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in CROPS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        photographs = {label: Image.fromarray(load()) for label, (load, _) in PHOTOGRAPHS.items()}
        for photograph in photographs.values():
            photograph.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        for i in range(CROPS[split] * len(photographs)):
            label = list(photographs)[i % len(photographs)]
            image = crop(photographs[label], np.random.default_rng((list(CROPS).index(split), i)))
            encoded = io.BytesIO()
            image.save(encoded, "PNG", compress_level=1)
            texts = captions(label, image.height, image.width)
            yield i, {"image": encoded.getvalue(), "label": label, "captions": texts}


def open_photos(at: Location) -> Source:
    """Opens the split "train" or "held_out" of the crops, which are written below `at.directory` on first use."""
    return InMemory(open_prepared(at, prepare(Photos, at.directory)))
