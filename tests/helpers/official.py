"""Made-up files in the exact layout of the official preprocessing of ImageNet: images, and latents beside them."""

import numpy as np
import safetensors.numpy
from PIL import Image

CLASSES = ("n01440764", "n01443537", "n01484850")
SIZES = ((150, 200), (203, 140), (128, 128), (400, 300))  # (height, width) of images


def make(root, per_class=4, channels=4, side=32):
    """Writes images/train/CLASS/NAME.JPEG and latents/CLASS/NAME.safetensors below `root`.

    Latents are float32 (2, channels, side, side), of the image and of its mirror image, and labels float32 scalars.

    Returns:
        {name of a latent's file below latents: (its image as Pillow's, its latents, its label)}.
    """
    rng, made = np.random.default_rng(0), {}
    for label, name in enumerate(CLASSES):
        images, latents = root / "images" / "train" / name, root / "latents" / name
        images.mkdir(parents=True)
        latents.mkdir(parents=True)
        for i in range(per_class):
            height, width = SIZES[i % len(SIZES)]
            stem = f"{name}_{10026 + i}"
            coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
            image = coarse.resize((width, height), Image.Resampling.BICUBIC)
            image.save(images / f"{stem}.JPEG", quality=100, subsampling=0)
            latent = rng.standard_normal((2, channels, side, side)).astype(np.float32)
            file = latents / f"{stem}.safetensors"
            safetensors.numpy.save_file({"latent": latent, "label": np.array(label, np.float32)}, file)
            made[f"{name}/{file.name}"] = (Image.open(images / f"{stem}.JPEG").convert("RGB"), latent, label)
    return made


def central_square(image, side):
    """The middle of an image as the official data loader brings it to side × side (the crop of guided diffusion).

    Halves it by boxes while it can, resizes its shorter side by Pillow's bicubic, and cuts the middle out.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    top, left = (image.height - side) // 2, (image.width - side) // 2
    return np.asarray(image)[top : top + side, left : left + side]
