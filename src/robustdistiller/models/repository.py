"""A model's name → its files on this machine: a shipped model, a folder, the hub's cache, or the hub itself.

From the hub comes what its repository lists and nothing else: the config, the preprocessor config, and the weights,
safetensors before pickled tensors. No pull request is looked for and no conversion is asked for.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ..assets import located, shipped
from ..errors import UserError, closest, first_line
from ..files import StrPath, neighbour, read_json

FORMATS = ("model.safetensors", "pytorch_model.bin")
"""The weight files that are read, best first; each may instead be in shards that an index lists."""

CONFIGS = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class ModelFiles:
    """What a name stands for.

    Attributes:
        name: as the user wrote it.
        folder: holds `config.json`, the weights and, mostly, a preprocessor config.
        weights: names of the weight files in `folder`.
        source: what was taken, for people: "pytorch_model.bin, revision 0123abc".
    """

    name: str
    folder: Path
    weights: tuple[str, ...]
    source: str


def locate(name: StrPath, also: Collection[str] = ()) -> ModelFiles:
    """Find a model, fetching what is missing from the hub.

    Args:
        name: a shipped model ("mini-hubert"), a folder (a cache snapshot, one with ``~``), or a hub name with or without a
            revision ("facebook/hubert-base-ls960", "facebook/hubert-base-ls960@main").
        also: names of further files to fetch where the repository has them.

    Raises:
        UserError: nothing by that name, no access, no weights; with what was found there and what to do.
    """
    given = os.fspath(name)
    folder = Path(os.path.expanduser(located(given)))
    if os.path.isdir(folder):  # unlike `Path.is_dir` it has an answer for any string
        return _in_folder(given, folder)
    if os.path.isfile(folder):
        raise UserError(f"{given} is a file: give the folder that holds it and its config.json.")
    hub_name, _, revision = given.partition("@")
    if given.startswith((".", "/", "~", "\\")) or hub_name.count("/") > 1:
        where = neighbour(folder) + " check the path, or give a hub name such as facebook/hubert-base-ls960"
        raise UserError(f"There is no model folder {given}:{where}.")
    if "/" not in hub_name:
        raise UserError(
            f"There is no model '{given}': no folder has that name, and the package ships {', '.join(_models())}."
            f"{closest(given, _models())} A model of the hub is written owner/name."
        )
    return _on_hub(given, hub_name, revision or "main", (*CONFIGS, *also))


def _models() -> list[str]:
    return [name for name in shipped() if (Path(located(name)) / "config.json").is_file()]


def _in_folder(name: str, folder: Path) -> ModelFiles:
    revision = folder.name if folder.parent.name == "snapshots" else ""
    if (folder / "refs" / "main").is_file():  # a repository in the hub's cache
        revision = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
        folder = folder / "snapshots" / Path(revision).name
    found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    chosen = _choose(found, f"The folder {name}")
    weights = _shards(folder / chosen) if chosen.endswith(".json") else (chosen,)
    if absent := [part for part in weights if part not in found]:
        raise UserError(f"The folder {name} lacks {absent[0]}, which {chosen} lists: copy or download it again.")
    return ModelFiles(name, folder, weights, _source(chosen, weights, revision))


def _choose(files: Collection[str], what: str) -> str:
    """The weight file, or the index of its shards, among `files`; raises `UserError` where there is none, or two of a kind."""
    some = ", ".join([*files][:8]) + (", …" if len(files) > 8 else "") if files else "nothing"
    if "config.json" not in files:
        raise UserError(f"{what} holds no config.json (it holds {some}): give a model in the layout of the hub.")
    for single in FORMATS:
        index = f"{single}.index.json"
        if single in files and index in files:
            raise UserError(f"{what} holds both {single} and {index}: delete the one that is not the model's.")
        if single in files or index in files:
            return single if single in files else index
    raise UserError(
        f"{what} holds no weights that can be read (it holds {some}): it takes model.safetensors or pytorch_model.bin, "
        "whole or in shards with their index. Copy or download one of them; what another framework wrote has to be saved "
        "with PyTorch first."
    )


def _shards(index: Path) -> tuple[str, ...]:
    content = read_json(index, "list of weights")
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or any(Path(str(name)).name != name for name in names.values()):
        raise UserError(f"The list of weights {index} names no files of its own folder: download the model again.")
    return tuple(sorted(set(names.values())))


def _source(chosen: str, weights: Collection[str], revision: str) -> str:
    parts = [f"{len(weights)} shards of {chosen.removesuffix('.index.json')}" if len(weights) > 1 else chosen]
    return ", ".join([*parts, *([f"revision {revision[:12]}"] if revision else [])])


def _on_hub(name: str, hub_name: str, revision: str, also: Collection[str]) -> ModelFiles:
    from huggingface_hub import HfApi, hf_hub_download

    refusal: Exception | None = None
    listed: list[str] = []
    try:
        listed = sorted(file.rfilename for file in HfApi().model_info(hub_name, revision=revision).siblings or ())
    except Exception as error:  # no way to the hub, no access, too many requests: the cache may still hold the model
        refusal = error

    def fetch(file: str, at: str) -> Path:
        return Path(hf_hub_download(hub_name, file, revision=at, local_files_only=refusal is not None))

    try:
        if not refusal and "config.json" not in listed:
            _choose(listed, f"{name} on the hub")
        folder = fetch("config.json", revision).parent
        if refusal:
            listed = sorted(p.name for p in folder.iterdir())
        chosen = _choose(listed, f"{name} in the cache" if refusal else f"{name} on the hub")
        for file in (*(file for file in also if file in listed), chosen):
            fetch(file, folder.name)
        weights = _shards(folder / chosen) if chosen.endswith(".json") else (chosen,)
        for file in weights:
            fetch(file, folder.name)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_refusal(name, revision, refusal or error)) from error
    return ModelFiles(name, folder, weights, _source(chosen, weights, folder.name))


def _refusal(name: str, revision: str, error: Exception) -> str:
    """One sentence for whatever the hub's client raised."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # what the client met before it looked into the cache
    status = getattr(getattr(error, "response", None), "status_code", None)
    if constants.HF_HUB_OFFLINE or isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"{name} is not, or not whole, in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to fetch it: run "
            "the command once with a network, or give a model folder."
        )
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{name} is open only to those who accepted its terms: accept them on its page of the hub, log in with `hf auth "
            "login` (or set HF_TOKEN), and run the same command again."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name.partition('@')[0]} has no revision '{revision}': write a branch, tag or commit after the @, or none."
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return (
            f"The hub has no model {name}, or does not show it to you:{neighbour(Path(name))} check the name, and log in with "
            "`hf auth login` (or set HF_TOKEN) if it is private."
        )
    if status == 429:
        return f"The hub asks for fewer requests (429) before it gives {name}: wait some minutes; the same command goes on."
    if isinstance(error, errors.HFValidationError):
        return f"'{name}' is no name of a model on the hub: write it as owner/name or owner/name@revision."
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"The disk of the cache {constants.HF_HUB_CACHE} is full: free space, or set HF_HOME to another disk."
    return (
        f"{name} did not come, or not whole, from the hub ({first_line(error)}): check the connection; the same command goes "
        "on where this one stopped."
    )
