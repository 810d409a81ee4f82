"""Upload of a finished folder to the hub, through huggingface_hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unmask.errors import ConfigError, RemoteError, cut_text
from unmask.models import read_config

if TYPE_CHECKING:
    from huggingface_hub import HfApi

NEVER = (".lock", "*.partial", "optimizer.safetensors", "step-*", "tokens/*")
"""Patterns of files that are not uploaded."""


def push(
    folder: Path,
    repository: str,
    *,
    endpoint: str | None = None,
    token: str | None = None,
    is_private: bool = True,
    message: str = "Upload by unmask",
) -> str:
    """Create the repository if it is missing, upload a checkpoint folder, and return its address.

    `endpoint`: another hub than huggingface.co; `token`: default, the one of `hf auth login`. Raises
    ConfigError for a folder or a name that cannot be uploaded, ModelError for a folder without a
    checkpoint, and RemoteError for what the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if not folder.is_dir():
        raise ConfigError(
            f"{cut_text(str(folder), 200)} is no folder; give the folder final of a run"
        )
    if not (folder / "adapter_config.json").is_file():
        read_config(folder)
        if not any(folder.glob("*.safetensors")):
            raise ConfigError(
                f"{folder} has no weights (*.safetensors); give a finished checkpoint"
            )
    api = HfApi(endpoint=endpoint, token=token)
    try:
        _create(api, repository, is_private)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=message,
            ignore_patterns=list(NEVER),
        )
    except HFValidationError as error:
        raise ConfigError(
            f"repository {cut_text(repository)!r}: {cut_text(str(error), 200)}; use owner/name"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        reason = cut_text(" ".join(str(error).split()), 300)
        raise RemoteError(f"{repository}: the upload failed: {reason}") from None
    return f"{api.endpoint}/{repository}"


def _create(api: HfApi, repository: str, is_private: bool) -> None:
    """Create the repository if it is missing."""
    from huggingface_hub.errors import HFValidationError

    try:
        api.create_repo(repository, private=is_private, exist_ok=True)
    except HFValidationError:
        raise
    except ValueError:
        # The library cannot read the address of a repository on another hub; the upload tells the rest.
        return
