"""TensorFlow Datasets image data sets, read through their random-access data source without TensorFlow."""

import contextlib
import dataclasses
import functools
import io

import tensorflow_datasets as tfds
from etils import epath

from tim_jax.data.faults import BadRecord
from tim_jax.data.sources.base import Location, Raw, Readable, digest


@dataclasses.dataclass(frozen=True)
class TfdsSource(Readable):
    """One split of a prepared TensorFlow Datasets data set with an `image` feature, read without TensorFlow.

    directory: the folder of one version, in a file format with random access (ArrayRecord). split: its name there.
    channels: of the images to make; 0: those of the data set. Labels are those of its `label` feature, captions those
    of `captions` or `caption`, where it has them.
    Raises ValueError for a split that the data set does not have, or a data set without images.
    """

    directory: str
    split: str
    channels: int = 0

    def __post_init__(self):
        splits = self._builder.info.splits
        if self.split not in splits:
            raise ValueError(f"split {self.split!r} of {self.name}: must be one of {', '.join(splits)}")
        if not isinstance(self._feature("image"), tfds.features.Image):
            raise ValueError(f"data set {self.name!r}: has no image feature named 'image', must have one")
        if self._builder.info.file_format.value != "array_record":
            raise ValueError(
                f"data set {self.name!r}: its files are {self._builder.info.file_format.value}, must be array_record "
                "for random access: prepare it with file_format='array_record'"
            )

    @functools.cached_property
    def _builder(self):
        return tfds.builder_from_directory(self.directory)

    @property
    def _features(self):
        return self._builder.info.features

    def _feature(self, name: str):
        return self._features[name] if name in self._features else None

    @functools.cached_property
    def _rows(self):
        # TensorFlow Datasets would decode with OpenCV where that is installed, to other pixels for lossy formats.
        return self._builder.as_data_source(self.split, decoders={"image": tfds.decode.SkipDecoding()})

    @property
    def name(self) -> str:
        return self._builder.name

    @property
    def num_classes(self) -> int:
        label = self._feature("label")
        return label.num_classes if isinstance(label, tfds.features.ClassLabel) else 0

    @property
    def captions(self) -> bool:
        return "captions" in self._features or "caption" in self._features

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        height, width, channels = self._features["image"].shape
        return height, width, self.channels or channels or 3

    def __len__(self) -> int:
        return self._builder.info.splits[self.split].num_examples

    def raw(self, i: int, most: int = -1) -> Raw:
        try:
            row = self._rows[i]
        except (ValueError, RuntimeError, OSError) as error:
            raise BadRecord("shard", str(error)) from None
        captions = row.get("captions", row.get("caption"))
        if captions is not None:
            found = [captions] if isinstance(captions, bytes | str) else list(captions)
            captions = [text.decode() if isinstance(text, bytes) else text for text in found]
        return Raw(row["image"], row.get("label"), captions)

    def identity(self, i: int) -> str:
        return f"{self._builder.info.full_name}:{self.split}[{i}]"

    def fingerprint(self) -> str:
        info = self._builder.info.splits[self.split]
        return digest(self._builder.info.full_name, self.split, info.shard_lengths, info.num_bytes)


def prepare(builder: type[tfds.core.DatasetBuilder] | tfds.core.DatasetBuilder, directory: str) -> str:
    """Writes a data set below `directory` as ArrayRecord, unless it is there already, and returns its own folder.

    The folder appears whole by one rename. Of several processes that start at once, one wins and the others read what
    it wrote.
    """
    root = epath.Path(directory).expanduser()
    made = builder(data_dir=root, file_format="array_record")
    if made.data_path.exists():
        return str(made.data_path)
    try:
        # Its messages speak of a download of unknown size; there is none.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            made.download_and_prepare(download_dir=made.data_path.parent)
    except OSError:
        if not made.data_path.exists():
            raise
    return str(made.data_path)


def open_tfds(at: Location) -> TfdsSource:
    """The data set that `path` names ("name", "name/config" or "name:version"), prepared below `directory` if need be.

    Raises ValueError for a name that is not known.
    """
    root = epath.Path(at.directory).expanduser()
    try:
        builder = tfds.builder(at.path, data_dir=root, file_format="array_record")
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"data.path is {at.path!r}; it must name a TensorFlow Datasets data set ({reason})") from None
    if not builder.data_path.exists():
        builder.download_and_prepare()
    return TfdsSource(str(builder.data_path), at.split, at.channels)
