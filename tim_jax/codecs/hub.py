"""Files on this machine, or on the Hugging Face hub as hf://owner/repository/file."""

import pathlib

from absl import logging

from tim_jax.system import paths

SCHEME = "hf://"
FILES = ["*.json", "*.safetensors", "tokenizer.model"]  # that are fetched of a repository without a file name


def local(path: str | pathlib.Path) -> pathlib.Path:
    """Fetches a path from the hub, if it is one there, and logs its licence.

    Args:
        path: a path on this machine, which is returned as it is; or hf://owner/repository, perhaps followed by a file
            or folder in it.

    Returns:
        A path on this machine.

    Raises:
        ValueError: if it cannot be fetched, saying which file to put where instead.
    """
    if not str(path).startswith(SCHEME):
        return pathlib.Path(paths.given(str(path), "path", ()))
    owner, _, rest = str(path).removeprefix(SCHEME).partition("/")
    name, _, inside = rest.strip("/").partition("/")
    if not owner or not name:
        raise ValueError(f"{path}: must be {SCHEME}owner/repository, perhaps with a file or folder in it")
    repository = f"{owner}/{name}"
    what = inside or f"its {', '.join(FILES)}"
    by_hand = f"put {what} of https://huggingface.co/{repository} on this machine and give that path instead"
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(f"{path}: needs the package huggingface_hub; install it, or {by_hand}") from None
    try:
        info = huggingface_hub.model_info(repository)
        if pathlib.PurePosixPath(inside).suffix:
            there = huggingface_hub.hf_hub_download(repository, inside)
        else:
            patterns = [f"{inside}/{file}" if inside else file for file in FILES]
            there = pathlib.Path(huggingface_hub.snapshot_download(repository, allow_patterns=patterns)) / inside
    except Exception as error:  # of the package, of the network below it, or of the disk
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: cannot be fetched ({reason}); {by_hand}") from None
    licence = (info.card_data or {}).get("license") or "unknown"
    logging.warning("%s: licence %s; see https://huggingface.co/%s", path, licence, repository)
    return pathlib.Path(there)
