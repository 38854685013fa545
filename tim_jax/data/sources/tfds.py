"""TensorFlow Datasets image data sets, read through their random-access data source without TensorFlow."""

import contextlib
import dataclasses
import functools
import io
import os

import tensorflow_datasets as tfds
from etils import epath

from tim_jax.data.bad_records import BadRecord
from tim_jax.data.sources.base import EncodedImages, Location, Raw, digest
from tim_jax.data.splits import own_split

INFO = "dataset_info.json"  # what every prepared data set has in the folder of its version
RANDOM_ACCESS = "array_record"  # the format of files that examples are read from in any order


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
    made = builder(data_dir=root, file_format=RANDOM_ACCESS)
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
    try:
        info, form = source.info, source.info.file_format.value
    except Exception as error:  # its description is in several files, and names classes of TensorFlow Datasets
        raise ValueError(
            f"{at.key} is {at.path!r}; it must be a data set that TensorFlow Datasets can open ({_first_line(error)})"
        ) from None
    source = dataclasses.replace(source, split=own_split(at, tuple(info.splits)))
    if "image" not in info.features or not isinstance(info.features["image"], tfds.features.Image):
        raise ValueError(f"{at.key} is {at.path!r}; the data set must have an image feature named 'image'")
    if form != RANDOM_ACCESS:
        raise ValueError(
            f"{at.key} is {at.path!r}; its files are {form}, but must be {RANDOM_ACCESS} for random access: prepare "
            f"it with file_format={RANDOM_ACCESS!r}"
        )
    return source


def open_tfds(at: Location) -> TfdsSource:
    """Opens a data set of TensorFlow Datasets.

    Args:
        at: its path is a folder that TensorFlow Datasets prepared, of one version or of all of them, or "name",
            "name/config" or "name:version". A name is looked for below `at.directory` and where TensorFlow Datasets
            keeps data sets (TFDS_DATA_DIR), and is prepared below `at.directory` otherwise.

    Raises:
        ValueError: there is no such data set, it cannot be prepared here, or TfdsSource cannot read it.
    """
    if not at.path:
        raise ValueError(f"{at.key} is {at.path!r}; it must be the name or folder of a TensorFlow Datasets data set")
    if folder := _folder(at):
        return open_prepared(at, folder, at.channels)
    copies = [copy for directory in (at.directory, own_directory()) for copy in _prepared(at.path, directory)]
    for folder, form in copies:
        if form == RANDOM_ACCESS:
            return open_prepared(at, folder, at.channels)
    try:
        made = _prepare_by_name(at)
    except ValueError:
        if not copies:
            raise
        made, _ = copies[0]  # of which is said what is wrong with it
    return open_prepared(at, made, at.channels)


def own_directory() -> str:
    """Where TensorFlow Datasets keeps data sets if it is not told otherwise."""
    return os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")


def _folder(at: Location) -> str | None:
    """The folder of a version that the path is or holds, the newest; None for a name. Raises ValueError."""
    root = epath.Path(at.path).expanduser()
    if (root / INFO).exists():
        return str(root)
    inside = [path for path in root.iterdir() if (path / INFO).exists()] if root.is_dir() else []
    versions = [path for path in inside if tfds.core.Version.is_valid(path.name)]
    if versions:
        return str(max(versions, key=lambda path: tfds.core.Version(path.name)))
    if os.path.isabs(root) or at.path.startswith((".", "~")) or "://" in at.path:
        raise ValueError(
            f"{at.key} is {at.path!r}; it must be a folder that TensorFlow Datasets prepared, with {INFO} or with "
            "folders of versions that have it"
        )
    return None


def _prepared(name: str, directory: str) -> list[tuple[str, str]]:
    """[(folder, format of its files)] of a data set in a folder of data sets; [] if it is not there."""
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=epath.Path(directory).expanduser())
        return [(str(builder.data_path), builder.info.file_format.value)]
    except Exception:  # not there, or of no use
        return []


def _prepare_by_name(at: Location) -> str:
    """Prepares the data set that the path names. Raises ValueError."""
    root = epath.Path(at.directory).expanduser()
    try:
        builder = tfds.builder(at.path, data_dir=root, file_format=RANDOM_ACCESS)
        if not builder.data_path.exists():
            builder.download_and_prepare()
        return str(builder.data_path)
    except tfds.core.registered.DatasetNotFoundError as error:
        problem = f"name a TensorFlow Datasets data set ({_first_line(error)})"
    except ImportError as error:
        problem = (
            f"be a data set that is prepared without TensorFlow, or the folder of one that was prepared elsewhere with "
            f"file_format={RANDOM_ACCESS!r} ({_first_line(error)})"
        )
    except Exception as error:  # a data set is a program of others that downloads and reads files
        problem = f"be a TensorFlow Datasets data set that can be prepared here ({_first_line(error)})"
    raise ValueError(f"{at.key} is {at.path!r}; it must {problem}")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
