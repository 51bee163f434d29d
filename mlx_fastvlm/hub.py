"""Where checkpoints are: a folder, the hub, or the embedded demo; and how one gets onto the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .errors import short
from .files import check_name

DEMO = Path(__file__).parent / "demo"


# All that is ever needed of a repository: no PyTorch pickles, no code, no Core ML packages.
_NEEDED = ("*.json", "*.safetensors", "merges.txt", "*.jinja")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def find_checkpoint(
    path_or_repo: str | Path,
    revision: str | None = None,
    also: tuple[str, ...] = (),
    needed: tuple[str, ...] = _NEEDED,
) -> Path:
    """The folder of a checkpoint, downloaded first if it is a hub id: the files ``needed``, and what is ``also`` there.

    Both are file patterns; by default all that loading reads.
    """
    name = str(path_or_repo)
    check_name(name)
    try:
        folder = DEMO if name == "demo" else Path(name).expanduser()
        is_file = folder.is_file()
    except (OSError, RuntimeError):  # a name too long for the system; a user that is none
        folder, is_file = Path("/nonexistent"), False
    if is_file:
        raise FileNotFoundError(f"{name} is a file; give the folder of a FastVLM checkpoint.")
    if not folder.is_dir() and _HUB_ID.fullmatch(name):
        folder = _download(name, revision, (*needed, *also))
    elif not name or not folder.is_dir():  # "" is the folder one is in, to pathlib
        raise FileNotFoundError(
            f"{short(name)} is neither a folder here nor a hub id; give a folder, a hub id such as apple/FastVLM-0.5B, "
            "or demo."
        )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{name} has no config.json; give the folder or hub id of a FastVLM checkpoint.")
    return folder


def _download(repo: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import errors, snapshot_download  # noqa: PLC0415  slow, and only to download

    try:
        return Path(
            snapshot_download(repo, revision=revision, allow_patterns=list(patterns), tqdm_class=_late_progress())
        )
    except errors.GatedRepoError:
        raise OSError(f"{repo} is gated; accept its terms on the hub and log in with `hf auth login`.") from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{repo} is not a folder here, and the hub has no such model; check the name."
        ) from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(f"{repo} has no revision {revision!r}; check the branch, tag or commit.") from None
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OSError(
            f"{repo} could not be downloaded ({reason}); check the connection, or give a folder with its files."
        ) from error


def _late_progress() -> Any:
    """The hub's progress bar, shown only once it has something to show: files that are there already take no second."""
    from huggingface_hub.utils import tqdm  # noqa: PLC0415  as below, slow, and only to download

    class Late(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{"delay": 1.5, **options})

    return Late


def is_within(file: Path, folder: Path) -> bool:
    """Whether a file of a checkpoint is its own, links followed; those of the hub's cache lead to its blobs."""
    home = folder.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    return any(file.resolve().is_relative_to(place) for place in homes)


def upload(folder: Path, repo: str, public: bool) -> None:
    """Put a folder onto the hub, private unless ``public``; ``OSError`` where that fails."""
    from huggingface_hub import HfApi  # noqa: PLC0415  slow, and only to upload
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415  as above

    try:
        api = HfApi()
        api.create_repo(repo, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=str(folder))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OSError(
            f"{folder} is complete, but its upload to {repo} failed ({reason}); log in with `hf auth login`, then "
            f"upload it with `hf upload {repo} {folder}`."
        ) from error
