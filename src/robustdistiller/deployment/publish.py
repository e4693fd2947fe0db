"""A student folder to the model hub, with its card."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from ..errors import UserError, explained
from ..files import StrPath, write_text
from ..models.student import HEADS_CONFIG, load_student

logger = logging.getLogger(__name__)

NAME = re.compile(r"[\w.-]+/[\w.-]+")
# What a student consists of; nothing else that may lie in the folder leaves the machine.
FILES = [
    "config.json", "model.safetensors", "preprocessor_config.json", "heads.json", "heads.safetensors", "README.md",
    "recipe.yaml", "provenance.json", "*.onnx", "export.json",
]  # fmt: skip


def push_to_hub(
    folder: StrPath,
    repository: str,
    private: bool = False,
    licence: str | None = None,
    message: str = "Upload a student",
    api: Any = None,
) -> str:
    """Upload a student folder (or one of exported files) as the model `repository` (``name/model``); returns its address.

    licence: written into the front matter of the model card; api: a `huggingface_hub.HfApi` (None: one with the user's own
    login). Raises `UserError` for a folder that is no student, a repository name that is none, or a hub that refuses.
    """
    path = Path(folder)
    if not NAME.fullmatch(repository):
        raise UserError(f"'{repository}' is no repository: write it as name/model.")
    if not path.is_dir():
        raise UserError(f"There is no folder {path}: give the student folder that `distill` wrote.")
    if not (path / HEADS_CONFIG).is_file() and not (path / "export.json").is_file():
        raise UserError(f"{path} is no student and no export: give the folder that `distill` or `export` wrote.")
    if (path / HEADS_CONFIG).is_file():
        load_student(path)  # a folder that does not open is not published
    card = path / "README.md"
    if not card.is_file():
        raise UserError(f"{path} has no README.md: write a model card before publishing it.")
    text = with_licence(card.read_text(encoding="utf-8"), licence)
    if "license:" not in text.split("---", 2)[1]:
        logger.warning("the model card names no licence: pass --license, or others may not use the model")
    if text != card.read_text(encoding="utf-8"):
        write_text(card, text)
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    advice = "log in with `hf auth login`, and check the name and the connection."
    with explained(f"The hub did not take {repository}", advice):
        api.create_repo(repo_id=repository, private=private, repo_type="model", exist_ok=True)
        done = api.upload_folder(
            repo_id=repository, folder_path=str(path), repo_type="model", commit_message=message, allow_patterns=FILES
        )
    return str(getattr(done, "commit_url", None) or f"https://huggingface.co/{repository}")


def with_licence(card: str, licence: str | None) -> str:
    """The model card with `license` in its front matter, which is added where there is none."""
    from huggingface_hub import ModelCard

    with explained("The front matter of README.md is not valid YAML", "correct it."):
        read = ModelCard(card, ignore_metadata_errors=True)
    if licence is None and card.startswith("---"):
        return card
    if licence is not None:
        read.data["license"] = licence
    return str(read)
