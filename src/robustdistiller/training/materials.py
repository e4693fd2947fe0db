"""The materials of a run: speech, noise and rooms found, split, and turned into the environments of training and validation.

Validation has speakers, noise recordings and rooms that training never has, under the same conditions for every
recipe: noise, reverberation or both with equal probability, whatever the recipe trains on, so that the losses of two recipes
on contaminated speech can be compared.
"""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..acoustics.environment import Environment
from ..audio.corpora import Role
from ..audio.manifest import Recording, write_manifest
from ..audio.prepare import prepare_all
from ..audio.shards import Shard, is_sharded, members, read_shards
from ..audio.splits import hold_out_stretch, split_by_group
from ..audio.streams import Spool
from ..config import EnvironmentConfig, Recipe
from ..errors import UserError
from ..files import digest, read_jsonl, write_json, write_jsonl
from ..progress import PartProgress
from ..provenance import TrainingExposure
from ..randomness import fraction
from .metrics_log import append_rows

logger = logging.getLogger(__name__)

SKIPPED = "skipped.jsonl"


@dataclass
class Materials:
    """The recordings of a run; `skipped` counts recordings that could not be used.

    Speech in shards is not in `train` but in `shards`, and is read from `spool`.
    """

    train: list[Recording]
    valid: list[Recording]
    train_environment: Environment
    valid_environment: Environment
    noise: dict[str, list[Recording]]
    rooms: dict[str, list[Recording]]
    skipped: int
    shards: list[Shard] = field(default_factory=list)
    spool: Spool | None = None

    @property
    def hours(self) -> float:
        """Hours of speech for training."""
        return (sum(r.seconds for r in self.train) + sum(shard.seconds for shard in self.shards)) / 3600

    @property
    def count(self) -> int:
        """Recordings for training."""
        return len(self.train) + sum(shard.recordings for shard in self.shards)

    def provenance(self) -> TrainingExposure:
        """The recordings of training: the speakers, noise groups and rooms that no test may use."""
        speakers = {r.speaker for r in self.train if r.speaker}
        return TrainingExposure(
            speakers=frozenset(speakers.union(*(shard.speakers for shard in self.shards))),
            noise_groups=frozenset(r.group or r.id for r in self.noise["train"]),
            room_groups=frozenset(r.group or r.id for r in self.rooms["train"]),
        )

    def digests(self) -> dict[str, str]:
        """A digest of every list, so that two runs can be compared."""
        lists = {"speech": {"train": self.train, "valid": self.valid}, "noise": self.noise, "rooms": self.rooms}
        shards = {"speech-shards": digest([shard.digest for shard in self.shards])} if self.shards else {}
        parts = [(f"{kind}-{split}", part) for kind, splits in lists.items() for split, part in splits.items()]
        return shards | {name: digest([[r.id, r.seconds] for r in part]) for name, part in parts}


def gather(recipe: Recipe, run: Path, report: PartProgress | None = None, rank: int = 0, start: int = 0) -> Materials:
    """Find, check and split what the recipe names, and write the manifests of every split into the run folder.

    Args:
        recipe: names the sources.
        run: the run folder.
        report: told about long work.
        rank: of this process.
        start: the step that the run goes on from.

    Raises:
        UserError: there is no speech, or nothing is left for training.
    """
    data = recipe.data
    if not data.speech:
        raise UserError("There is no speech to learn from: give --speech FOLDER_OR_MANIFEST, once or more often.")
    sharded = [is_sharded(source) for source in data.speech]
    if any(sharded) and not all(sharded):
        raise UserError("Shards cannot be mixed with other speech: write that to shards too, and name both.")
    skipped: list[Any] = []
    splits: dict[str, dict[str, list[Recording]]] = {}
    sources_by_role: dict[Role, tuple[str, ...]] = {
        "speech": () if all(sharded) else data.speech, "noise": data.noise, "rooms": data.rooms
    }  # fmt: skip
    for role, sources in sources_by_role.items():
        splits[role] = {"train": [], "valid": []}
        if sources:
            watch = None if report is None else partial(report, f"scanning {role}")
            prepared = prepare_all(sources, role, cache=run / "manifests" / "cache", progress=watch)
            skipped += prepared.skipped
            parts = split_by_group(prepared.recordings, data.valid_fraction, seed=recipe.training.seed)
            if role == "speech" and data.valid_fraction:
                if len(parts["train"]) == 1 and not parts["valid"]:
                    parts |= hold_out_stretch(parts["train"][0], data.valid_fraction)
                elif not any(recording.speaker for recording in prepared.recordings):
                    logger.warning(
                        "no speaker of the speech is known: the same voices may be in training and validation. Name them as "
                        "'speaker' in a manifest, or put each speaker's files into a folder of that name."
                    )
            splits[role].update({name: parts.get(name, []) for name in ("train", "valid")})
    if not rank:
        _list_skipped(run / SKIPPED, skipped, start)
    if skipped:
        logger.warning("%d recordings cannot be used; they are listed in %s", len(skipped), run / SKIPPED)
    shards: list[Shard] = []
    spool = None
    if all(sharded):
        shards, spool, splits["speech"]["valid"], voices = from_shards(recipe, run, rank)
    train = [r for r in splits["speech"]["train"] if r.seconds >= data.min_seconds]
    valid = _enough([r for r in splits["speech"]["valid"] if r.seconds >= data.min_seconds], recipe)
    if not train and not shards:
        raise UserError(f"No speech of {data.min_seconds:g} s is left to train on: add some or lower data.min_seconds.")
    if not valid:
        raise UserError("No speech is held out for validation: give more recordings or raise data.valid_fraction.")
    for kind, parts in splits.items():
        for name, recordings in parts.items():
            if recordings and not (shards and kind == "speech"):
                write_manifest(run / "manifests" / f"{kind}-{name}.jsonl", recordings)
    environment = recipe.environment
    judged = environment.model_copy(
        update={
            "clean": 0.0, "noise": 1.0, "reverb": 1.0, "both": 1.0,
            "curriculum": environment.curriculum.model_copy(update={"steps": 0}),
        }
    )  # fmt: skip
    return Materials(
        train, valid, _environment(environment, splits, "train", voices if shards else train, recipe),
        _environment(judged, splits, "valid", valid, recipe), splits["noise"], splits["rooms"], len(skipped), shards,
        spool,
    )  # fmt: skip


def _environment(
    config: EnvironmentConfig,
    splits: dict[str, dict[str, list[Recording]]],
    split: str,
    speech: list[Recording],
    recipe: Recipe,
) -> Environment:
    return Environment.build(
        config, noise=splits["noise"][split], rooms=splits["rooms"][split], speech=speech, seed=recipe.training.seed,
        split=split, cache_mb=recipe.data.noise_cache_mb,
    )  # fmt: skip


def _list_skipped(file: Path, scanned: list[Any], start: int) -> None:
    """What the scan left out, and what was listed since in the steps up to `start`."""
    earlier = [row for _, row in read_jsonl(file, "list")] if file.is_file() else []
    rows: list[dict[str, Any]] = [vars(row) for row in scanned]
    rows += [row for row in earlier if isinstance(row.get("step"), int) and row["step"] < start]
    if rows or file.is_file():
        write_jsonl(file, rows)


def _enough(valid: list[Recording], recipe: Recipe) -> list[Recording]:
    """At most `valid_seconds` of held-out speech, taken evenly over the list so that every speaker has a chance."""
    limit, crop = recipe.data.valid_seconds, recipe.data.crop_seconds
    total = sum(min(r.seconds, crop) for r in valid)
    if total <= limit:
        return valid
    count = max(1, round(len(valid) * limit / total))
    return [valid[i * len(valid) // count] for i in range(count)]


def from_shards(recipe: Recipe, run: Path, rank: int) -> tuple[list[Shard], Spool, list[Recording], list[Recording]]:
    """Shards for training, the spool that they are read from, held-out recordings, and voices for babble.

    Babble is made of the voices of one training shard, where the recipe has any.
    """
    folders = list(dict.fromkeys(os.path.realpath(os.path.expanduser(source)) for source in recipe.data.speech))
    shards = [shard for folder in folders for shard in read_shards(folder)]
    train, valid = split_shards(shards, recipe)
    if not rank:
        paths = {"train": [shard.path for shard in train], "valid": [shard.path for shard in valid]}
        write_json(run / "manifests" / "speech-shards.json", paths)
    base = recipe.data.spool or tempfile.gettempdir()
    folder = Path(base) / f"robustdistiller-{digest(os.path.abspath(run))}-{rank}"
    spool = Spool(train, folder, lambda row: append_rows(run / SKIPPED, [row]))
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
        logger.warning("%d speakers (such as %s) are in training and in validation", len(shared), min(shared))
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
