"""TensorFlow Datasets image data sets, read through their random-access data source without TensorFlow."""

import contextlib
import dataclasses
import functools
import io

import tensorflow_datasets as tfds
from etils import epath

from tim_jax.data.bad_records import BadRecord
from tim_jax.data.sources.base import EncodedImages, Location, Raw, digest
from tim_jax.data.splits import own_split


@dataclasses.dataclass(frozen=True)
class TfdsSource(EncodedImages):
    """One split of a prepared TensorFlow Datasets data set with an `image` feature.

    Labels are those of its `label` feature, and captions those of `captions` or `caption`, where it has them.

    Attributes:
        directory: the folder of one version, in a file format with random access (ArrayRecord).
        split: the name that the split has there.
        channels: channels of the images to make; 0 for those of the data set.
        with_captions: whether captions are read.
    """

    directory: str
    split: str
    channels: int = 0
    with_captions: bool = True

    @functools.cached_property
    def _builder(self):
        return tfds.builder_from_directory(self.directory)

    @property
    def info(self) -> tfds.core.DatasetInfo:
        """What TensorFlow Datasets knows of the data set."""
        return self._builder.info

    @functools.cached_property
    def _data_source(self):
        # TensorFlow Datasets would decode with OpenCV where that is installed, to other pixels for lossy formats.
        return self._builder.as_data_source(self.split, decoders={"image": tfds.decode.SkipDecoding()})

    @property
    def name(self) -> str:
        return self._builder.name

    @property
    def num_classes(self) -> int:
        label = self.info.features["label"] if "label" in self.info.features else None
        return label.num_classes if isinstance(label, tfds.features.ClassLabel) else 0

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.info.features["label"].names) if self.num_classes else ()

    @property
    def captions(self) -> bool:
        return self.with_captions and self._has_captions

    @property
    def _has_captions(self) -> bool:
        return "captions" in self.info.features or "caption" in self.info.features

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        height, width, channels = self.info.features["image"].shape
        return height, width, self.channels or channels or 3

    def __len__(self) -> int:
        return self.info.splits[self.split].num_examples

    def raw(self, i: int, max_bytes: int = -1) -> Raw:
        try:
            stored = self._data_source[i]
        except (ValueError, RuntimeError, OSError) as error:
            raise BadRecord("shard", str(error)) from None
        captions = stored.get("captions", stored.get("caption")) if self.captions else None
        if captions is not None:
            found = [captions] if isinstance(captions, bytes | str) else list(captions)
            try:
                captions = [text.decode() if isinstance(text, bytes) else text for text in found]
            except UnicodeDecodeError:
                raise BadRecord("metadata", "text that is not UTF-8") from None
        return Raw(stored["image"], stored.get("label"), captions)

    def identity(self, i: int) -> str:
        return f"{self.info.full_name}:{self.split}[{i}]"

    def fingerprint(self) -> str:
        info = self.info.splits[self.split]
        left = ("captions left",) if self._has_captions and not self.with_captions else ()
        return digest(self.info.full_name, self.split, info.shard_lengths, info.num_bytes, *left)


def prepare(builder: type[tfds.core.DatasetBuilder] | tfds.core.DatasetBuilder, directory: str) -> str:
    """Writes a data set as ArrayRecord, unless it is there already.

    Its folder appears whole by one rename. Of several processes that start at once, one wins and the others read what
    it wrote.

    Args:
        builder: the data set.
        directory: the folder of all data sets.

    Returns:
        The data set's own folder.
    """
    root = epath.Path(directory).expanduser()
    made = builder(data_dir=root, file_format="array_record")
    if made.data_path.exists():
        return str(made.data_path)
    try:
        # Its messages announce a download of unknown size, but nothing is downloaded.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            made.download_and_prepare(download_dir=made.data_path.parent)
    except OSError:
        if not made.data_path.exists():
            raise
    return str(made.data_path)


def open_prepared(at: Location, directory: str, channels: int = 0) -> TfdsSource:
    """Opens a data set that is already there.

    Args:
        at: names the split.
        directory: the data set's own folder, as `prepare` returns it.
        channels: channels of the images to make; 0 for those of the data set.

    Raises:
        ValueError: the data set has no such split or no images, or its files have no random access.
    """
    source = TfdsSource(directory, at.split, channels, at.captions)
    info, form = source.info, source.info.file_format.value
    source = dataclasses.replace(source, split=own_split(at, tuple(info.splits)))
    if "image" not in info.features or not isinstance(info.features["image"], tfds.features.Image):
        raise ValueError(f"{at.key} is {at.path!r}; the data set must have an image feature named 'image'")
    if form != "array_record":
        raise ValueError(
            f"{at.key} is {at.path!r}; its files are {form}, but must be array_record for random access: prepare it "
            "with file_format='array_record'"
        )
    return source


def open_tfds(at: Location) -> TfdsSource:
    """Opens a data set of TensorFlow Datasets, which is prepared below `at.directory` unless it is there.

    Args:
        at: its path is "name", "name/config" or "name:version".

    Raises:
        ValueError: there is no such data set, or TfdsSource cannot read it.
    """
    root = epath.Path(at.directory).expanduser()
    try:
        builder = tfds.builder(at.path, data_dir=root, file_format="array_record")
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{at.key} is {at.path!r}; it must name a TensorFlow Datasets data set ({reason})") from None
    if not builder.data_path.exists():
        builder.download_and_prepare()
    return open_prepared(at, str(builder.data_path), at.channels)
