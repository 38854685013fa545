"""The sections `data` and `loader` of a configuration, key by key; `settings.Inputs` is what is made of them."""

import dataclasses

from tim_jax.data.buckets import MAX_BUCKETS

EMBEDDED = ("digits", "photos", "emoji")  # sources that need no path
MAX_BATCH = 10**7
UNUSED = {
    ("data.source", "data.path"): ("data.mixture names the sources", lambda c: c.data.mixture),
    ("data.path",): (
        "data.source is embedded (--config=own_images is for images of your own)",
        lambda c: c.data.source in EMBEDDED,
    ),
    ("data.images",): (
        "data.source is not 'latents', data.mixture names the sources, or data.features_width is 0",
        lambda c: c.data.source != "latents" or c.data.mixture or not c.data.features_width,
    ),
    ("data.batch_size",): ("data.buckets.tokens is above 0", lambda c: c.data.buckets.tokens > 0),
    ("data.buckets.area", "data.buckets.max_buckets", "data.buckets.keep_rare"): (
        "data.buckets.table is given",
        lambda c: c.data.buckets.table,
    ),
    ("data.buckets.max_buckets", "data.buckets.keep_rare", "data.buckets.tokens"): (
        "data.buckets.table and data.buckets.area are empty",
        lambda c: not c.data.buckets.table and not c.data.buckets.area,
    ),
    ("data.text_width", "data.text_tokens"): ("model.condition is not 'text'", lambda c: c.model.condition != "text"),
}


@dataclasses.dataclass(frozen=True)
class BucketSettings:
    """The shapes that images are brought to."""

    table: tuple[tuple[int, int], ...] = ()  # ((height, width), …); (): made from the images' own sizes
    area: int = 0  # largest height × width of a bucket that is made
    max_buckets: int = MAX_BUCKETS  # number of buckets that are made, at most
    keep_rare: bool = False  # make them so small that shapes too rare for a batch fit too, or else leave these out
    tokens: int = 0  # of a global batch, which sets its size by bucket; 0: data.batch_size for any bucket
    # Of height × width as of buckets:
    max_cropped: float = 0.5  # images that would lose a larger share of their area are not used
    enlarge: bool = False  # use images that are too small for every shape


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """What is trained on."""

    source: str = "digits"  # a name in tim_jax.data.SOURCES
    path: str = ""  # of the data, or the name of a TensorFlow Datasets data set; embedded sources have none
    # of the images that "latents" were made of, in the same class folders: codecs.image_encoder makes features of them
    images: str = ""
    split: str = "train"  # the part that is trained on
    # share of "train" that is a part "held_out" instead, chosen by a hash of names; -1: 0.05, or 0 where the data has
    # parts of its own, chosen at the first start
    held_out_share: float = 0.0
    mixture: tuple[tuple[str, str, float], ...] = ()  # in place of one source: ((source, path, weight), …)
    # of every example; with buckets, of samples that no other size is requested for; -1: 32 on CPUs and 64 elsewhere,
    # chosen at the first start
    height: int = 8
    width: int = 8  # -1: as height
    channels: int = 1
    # of a global batch, over all devices; unused where buckets.tokens is given; -1: what suits the devices, chosen at
    # the first start
    batch_size: int = 256
    flip: float = 0.0  # share of examples that are mirrored
    random_crop: bool = False  # crop anywhere, not in the middle
    # Native resolution: shapes (height, width) of examples; an image goes to the nearest aspect ratio, is resized to
    # cover it and cropped. Neither table nor area: all examples are height × width, resized and cropped alike. Latents
    # are not resized.
    buckets: BucketSettings = BucketSettings()
    # Examples are encoded as they are read, by `codecs` (python -m tim_jax.encode does it once, to shards); False: they
    # are what is trained on.
    encode: bool = False
    # of latents: the autoencoder's scaling_factor, by which a teacher of other latents is known; 0: not known
    latent_scale: float = 0.0
    paired_noise: bool = False  # examples bring the noise that they were made from (python -m tim_jax.pairs)
    condition_dropout: float = 0.1  # share of examples trained with the null condition
    features_width: int = 0  # width of the image features for alignment; 0: none
    text_width: int = 0  # width of text features; used where model.condition is "text"
    text_tokens: int = 0  # text tokens of a caption, padding included

    def check(self, patch_size: int, condition: str) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be.

        Args:
            patch_size: of the network, `model.patch_size`.
            condition: of the network, `model.condition`.
        """
        for name in ("height", "width", "channels", "batch_size"):
            if getattr(self, name) < 1 and (name, getattr(self, name)) != ("batch_size", -1):
                raise ValueError(f"data.{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch_size > MAX_BATCH:
            raise ValueError(f"data.batch_size is {self.batch_size}; it must be at most {MAX_BATCH}")
        for name in ("height", "width"):
            if patch_size < 1 or getattr(self, name) % patch_size:
                raise ValueError(f"model.patch_size is {patch_size}; it must divide data.{name}, {getattr(self, name)}")
        if self.latent_scale < 0:
            raise ValueError(f"data.latent_scale is {self.latent_scale}; it must be at least 0")
        if not 0 <= self.held_out_share < 1:
            raise ValueError(f"data.held_out_share is {self.held_out_share}; it must lie in [0, 1)")
        if not 0 <= self.condition_dropout < 1:  # at 1, samples would have conditions that were never trained
            raise ValueError(f"data.condition_dropout is {self.condition_dropout}; it must lie in [0, 1)")
        for name in ("text_width", "text_tokens"):
            if condition == "text" and getattr(self, name) < 1:
                raise ValueError(
                    f"data.{name} is {getattr(self, name)}; it must be at least 1 where model.condition is 'text'"
                )
        if self.paired_noise:
            self._check_paired_noise()

    def _check_paired_noise(self) -> None:
        """Raises ValueError for settings that would part examples from their noise or from their condition."""
        for name, value, right in (
            ("encode", self.encode, False),
            ("mixture", self.mixture, ()),
            ("flip", self.flip, 0.0),
            ("condition_dropout", self.condition_dropout, 0.0),
            ("buckets.table", self.buckets.table, ()),
            ("buckets.area", self.buckets.area, 0),
        ):
            if value:
                raise ValueError(f"data.{name} is {value!r}; it must be {right!r} where data.paired_noise is True")


@dataclasses.dataclass(frozen=True)
class LoaderSettings:
    """How examples are read; no number that a run gives depends on it."""

    directory: str = ""  # of embedded data, indices and bucket plans, on a local disk; "": ~/.cache/tim_jax
    # GiB that indices, tables of sizes, bucket plans and references of evaluations may take there: those used longest
    # ago go; 0: no limit
    cache_gib: float = 50.0
    workers: int = 0  # reading processes of each process; 0: its threads alone
    threads: int = 2  # reading threads of each process, or of each worker
    prefetch: int = 4  # batches read ahead
    max_bad_share: float = 0.01  # share of records that may be unusable before the run stops

    def check(self) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be."""
        for name, least in (("cache_gib", 0), ("workers", 0), ("threads", 0), ("prefetch", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"loader.{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"loader.max_bad_share is {self.max_bad_share}; it must lie in [0, 1]")
