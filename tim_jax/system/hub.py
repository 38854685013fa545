"""Files on this machine, or on the Hugging Face hub as hf://owner/repository/file; and folders put there."""

import pathlib
import re
from typing import Any

from absl import logging

from tim_jax.system import paths

SCHEME = "hf://"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# What is fetched of a repository where no file is named.
FILES = ["*.json", "*.safetensors", "tokenizer.model", "plugins/*.py"]


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
    huggingface_hub = _package(str(path), f"install it, or {by_hand}")
    try:
        info = huggingface_hub.model_info(repository)
        if pathlib.PurePosixPath(inside).suffix:
            there = huggingface_hub.hf_hub_download(repository, inside)
        else:
            patterns = [f"{inside}/{file}" if inside else file for file in FILES]
            there = pathlib.Path(huggingface_hub.snapshot_download(repository, allow_patterns=patterns)) / inside
    except Exception as error:  # of the package, of the network below it, or of the disk
        raise ValueError(f"{path}: cannot be fetched ({_reason(error)}); {by_hand}") from None
    licence = (info.card_data or {}).get("license") or "unknown"
    logging.warning("%s: licence %s; see https://huggingface.co/%s", path, licence, repository)
    return pathlib.Path(there)


def upload(folder: pathlib.Path, repository: str, private: bool) -> str:
    """Puts a folder into a repository of models on the hub, which is made if it is not there.

    Who may write there is for the hub's own log-in to say (`hf auth login`, or HF_TOKEN in the environment).

    Args:
        folder: on this machine.
        repository: owner/name, see `repository_name`.
        private: whether a repository that is made is hidden from others.

    Returns:
        The address of the repository.

    Raises:
        ValueError: one line, if it cannot be uploaded.
    """
    api = _package(f"{SCHEME}{repository}", "install it with pip install huggingface_hub").HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Weights exported by tim_jax")
    except Exception as error:  # of the package, of the network below it, or of the disk
        raise ValueError(
            f"{SCHEME}{repository}: cannot be uploaded ({_reason(error)}); log in with `hf auth login`, or set "
            "HF_TOKEN, as somebody who may write there"
        ) from None
    return str(address)


def repository_name(text: str) -> str:
    """owner/name of a repository, which may begin with hf://. Raises ValueError for anything else."""
    owner, _, name = text.removeprefix(SCHEME).partition("/")
    if not _NAME.fullmatch(owner) or not _NAME.fullmatch(name):
        raise ValueError(
            f"REPOSITORY is {text!r}; it must be the owner and the name of a repository, such as me/tim-cats"
        )
    return f"{owner}/{name}"


def check_upload(text: str) -> str:
    """repository_name, once it is sure that the package is there. Raises ValueError."""
    _package(f"{SCHEME}{repository_name(text)}", "install it with pip install huggingface_hub")
    return repository_name(text)


def _package(path: str, instead: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(f"{path}: needs the package huggingface_hub; {instead}") from None
    return huggingface_hub


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
