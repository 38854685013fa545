"""The same made-up rows in every layout that sources read."""

import io
import json
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import safetensors.numpy
import tensorflow_datasets as tfds
from PIL import Image

from tim_jax import data
from tim_jax.data.sources.tfds import prepare

ROWS = 12
RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (*RNG.integers(8, 20, 2), 3), dtype=np.uint8) for _ in range(ROWS)]
LABELS = [i // 6 for i in range(ROWS)]  # class folders come in order
CAPTIONS = [(f"picture {i}", f"der Bär und das Bild Nr. {i}") for i in range(ROWS)]
LATENTS = RNG.standard_normal((ROWS, 2, 4, 6, 8)).astype(np.float32)


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **options)
    return buffer.getvalue()


class Things(tfds.core.GeneratorBasedBuilder):
    """A data set that this package knows nothing of."""

    VERSION = tfds.core.Version("2.1.0")
    code_path = None

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=2),
            "caption": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(ROWS):
            yield i, {"image": encoded(IMAGES[i]), "label": LABELS[i], "caption": CAPTIONS[i][0]}


def make_folder(root):
    for i in range(ROWS):
        path = root / "images" / f"class {LABELS[i]}" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(IMAGES[i]))
    return {"path": str(root / "images")}


def make_manifest(root, extra=""):
    (root / "sub").mkdir()
    lines = []
    for i in range(ROWS):
        (root / "sub" / f"{i}.png").write_bytes(encoded(IMAGES[i]))
        entry = {"image_file": f"sub/{i}.png", "captions": list(CAPTIONS[i])}
        if i % 2:
            entry["bucket"] = "name-" + "x".join(map(str, IMAGES[i].shape[:2]))
        lines.append(json.dumps(entry, ensure_ascii=bool(i % 3)))
    (root / "rows.jsonl").write_text("\n".join(lines) + extra)
    return {"path": str(root)}


def make_tar(root):
    for shard in range(2):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for i in range(6 * shard, 6 * shard + 6):
                beside = {"json": json.dumps({"captions": CAPTIONS[i], "label": LABELS[i]}).encode()}
                if i % 2:
                    beside = {"txt": CAPTIONS[i][0].encode(), "cls": str(LABELS[i]).encode()}
                for ending, content in ({"png": encoded(IMAGES[i])} | beside).items():
                    about = tarfile.TarInfo(f"a.b/{i:05}.{ending}")
                    about.size = len(content)
                    tar.addfile(about, io.BytesIO(content))
    return {"path": str(root), "num_classes": 2}


def make_parquet(root):
    for shard in range(2):
        rows = range(6 * shard, 6 * shard + 6)
        images = [{"bytes": encoded(IMAGES[i]), "path": None} for i in rows]
        columns = {"image": images, "label": [LABELS[i] for i in rows], "captions": [CAPTIONS[i] for i in rows]}
        pyarrow.parquet.write_table(pyarrow.table(columns), root / f"{shard}.parquet", row_group_size=4)
    return {"path": str(root), "num_classes": 2}


def make_latents(root):
    for i in range(ROWS):
        path = root / "latents" / f"n{LABELS[i]}" / f"{i:03}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file({"latent": LATENTS[i], "label": np.array([LABELS[i]], np.int64)}, path)
    return {"path": str(root / "latents"), "channels": 4}


def make_shards(root):
    rows = ({"image": encoded(IMAGES[i]), "label": LABELS[i], "captions": CAPTIONS[i]} for i in range(ROWS))
    data.write_shards(root / "shards", rows, num_classes=2, examples_per_shard=5)
    return {"path": str(root / "shards")}


def make_tfds(root):
    prepare(Things, str(root / "cache"))
    return {"path": "things"}


def make_preferences(root, ties=1):
    """Pairs of an image with itself upside down, which loses."""
    lines = []
    for i in range(ROWS):
        names = [f"{i}.png", f"{i}_lost.png"]
        for name, image in zip(names, (IMAGES[i], IMAGES[i][::-1]), strict=True):
            (root / name).write_bytes(encoded(np.ascontiguousarray(image)))
        line = {"images": names[:: 1 - 2 * (i % 2)], "choice": i % 2, "label": LABELS[i], "reward": i / ROWS}
        lines += [line] + [line | {"choice": None}] * (ties if i == 4 else 0)
    (root / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"path": str(root / "pairs.jsonl"), "num_classes": 2}


MADE = {"folder": make_folder, "manifest": make_manifest, "tar": make_tar, "parquet": make_parquet}
MADE |= {"latents": make_latents, "shards": make_shards, "tfds": make_tfds, "preferences": make_preferences}
EMBEDDED = ("digits", "photos", "emoji")


def open_made(name, folder, embedded):
    """A small source for an entry of SOURCES. folder: for what is made up; embedded: see tests/conftest.py."""
    if name in EMBEDDED:
        return data.open_source(name, str(embedded), "held_out", size=16)
    return data.open_source(name, str(folder / "cache"), "train", **MADE[name](folder))


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
