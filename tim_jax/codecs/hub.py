"""Files by path, or as hf://owner/repository/file from the Hugging Face hub."""

import pathlib
import sys

SCHEME = "hf://"
PARTS = ["*.json", "*.safetensors", "tokenizer.model"]  # of a repository that is asked for as a folder


def local(path: str | pathlib.Path) -> pathlib.Path:
    """The path itself, or where a file or folder of the hub now lies on this machine; then its licence is told.

    Raises ValueError that says which file to put where, if it cannot be fetched.
    """
    if not str(path).startswith(SCHEME):
        return pathlib.Path(path)
    owner, _, rest = str(path).removeprefix(SCHEME).partition("/")
    name, _, inside = rest.strip("/").partition("/")
    if not owner or not name:
        raise ValueError(f"{path}: must be {SCHEME}owner/repository, perhaps with a file or folder in it")
    repository = f"{owner}/{name}"
    what = inside or f"its {', '.join(PARTS)}"
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
            patterns = [f"{inside}/{part}" if inside else part for part in PARTS]
            there = pathlib.Path(huggingface_hub.snapshot_download(repository, allow_patterns=patterns)) / inside
    except Exception as error:  # of the package, of the network below it, or of the disk
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: cannot be fetched ({reason}); {by_hand}") from None
    licence = (info.card_data or {}).get("license") or "not told"
    print(f"{path}: licence {licence}; see https://huggingface.co/{repository}", file=sys.stderr, flush=True)
    return pathlib.Path(there)
