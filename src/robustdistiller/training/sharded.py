"""Speech in shards as the materials of a run: which shards are held out, and voices for babble."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..audio.manifest import Recording
from ..audio.shards import Shard, members, read_shards
from ..audio.streams import Spool
from ..config import Recipe
from ..errors import UserError
from ..files import digest, write_json
from ..randomness import fraction

logger = logging.getLogger(__name__)


def from_shards(recipe: Recipe, run: Path, rank: int) -> tuple[list[Shard], Spool, list[Recording], list[Recording]]:
    """Shards for training, the spool that they are heard from, held-out recordings, and voices for babble.

    Babble is made of the voices of one training shard, where the recipe has any.
    """
    folders = list(dict.fromkeys(os.path.realpath(os.path.expanduser(source)) for source in recipe.data.speech))
    shards = [shard for folder in folders for shard in read_shards(folder)]
    train, valid = split_shards(shards, recipe)
    if not rank:
        told = {"train": [shard.path for shard in train], "valid": [shard.path for shard in valid]}
        write_json(run / "manifests" / "speech-shards.json", told)
    base = recipe.data.spool or tempfile.gettempdir()
    spool = Spool(
        train,
        Path(base) / f"robustdistiller-{digest(os.path.abspath(run))}-{rank}",
        lambda row: _note(run / "skipped.jsonl", row),
    )
    held = [replace(m, split="valid") for shard in valid for m in members(spool.hold(shard), shard)]
    voices: list[Recording] = []
    if recipe.environment.uses_noise and recipe.environment.noise_kinds.babble > 0:
        voices = [replace(m, split="train") for m in members(spool.hold(train[0]), train[0])]
    return train, spool, [*held], voices


def split_shards(shards: list[Shard], recipe: Recipe) -> tuple[list[Shard], list[Shard]]:
    """Training and held-out shards: as they are marked, else whole ones by seed until `valid_seconds` are there."""
    named = [shard for shard in shards if shard.split == "valid"]
    rest = [shard for shard in shards if shard.split in (None, "train")]
    seed, wanted = recipe.training.seed, recipe.data.valid_seconds
    held = _first(sorted(named or rest, key=lambda shard: fraction(seed, "held out", shard.digest)), wanted)
    train = [shard for shard in rest if shard not in held]
    if not train:
        raise UserError(
            f"There {'is one shard' if len(rest) == 1 else f'are {len(rest)} shards'} and whole ones are held out for "
            "validation: write smaller ones (robustdistiller shard --shard-mb), or lower data.valid_seconds."
        )
    shared = {name for shard in train for name in shard.speakers} & {name for shard in held for name in shard.speakers}
    if shared:
        logger.warning("%d speakers (such as %s) are heard in training and in validation", len(shared), min(shared))
    return train, held


def _first(shards: list[Shard], seconds: float) -> list[Shard]:
    """As many as hold `seconds`, at least one."""
    found: list[Shard] = []
    total = 0.0
    for shard in shards:
        if found and total >= seconds:
            break
        found.append(shard)
        total += shard.seconds
    return found


def _note(file: Path, row: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")
