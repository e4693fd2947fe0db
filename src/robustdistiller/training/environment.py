"""The materials of a run: speech, noise and rooms found, split, and turned into the environments of training and validation.

Validation hears speakers, noise recordings and rooms that training never hears, under the same conditions for every
recipe: noise, reverberation or both with equal probability, whatever the recipe trains on, so that the losses of two recipes
on contaminated speech can be compared.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..acoustics.scene import Environment
from ..audio.corpora import Role
from ..audio.manifest import Recording, write_manifest
from ..audio.prepare import prepare_all, write_skipped
from ..audio.shards import Shard, is_sharded
from ..audio.splits import hold_out_stretch, split_by_group
from ..audio.streams import Spool
from ..config import EnvironmentConfig, Recipe
from ..errors import UserError
from ..files import digest
from ..provenance import TrainingExposure
from .sharded import from_shards

logger = logging.getLogger(__name__)

Reporter = Callable[[str, int, int], None]
"""Called with (what is done, units done, units in all) during long work."""


@dataclass
class Materials:
    """Everything a run listens to; `skipped` counts recordings that could not be used.

    Speech in shards is not in `train` but in `shards`, and is heard from `spool`.
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
        """What training hears of recordings: the speakers, noise groups and rooms that no test may use."""
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
        return shards | {
            f"{kind}-{split}": digest([[r.id, r.seconds] for r in recordings])
            for kind, splits in lists.items()
            for split, recordings in splits.items()
        }


def gather(recipe: Recipe, run: Path, report: Reporter | None = None, rank: int = 0) -> Materials:
    """Find, check and split what the recipe names, and write the manifests of every split into the run folder.

    Raises `UserError` when there is no speech, or nothing is left for training.
    """
    data = recipe.data
    if not data.speech:
        raise UserError(
            "There is no speech to learn from: give --speech FOLDER_OR_MANIFEST (more than once if you like)."
        )
    sharded = [is_sharded(source) for source in data.speech]
    if any(sharded) and not all(sharded):
        raise UserError(
            "Speech in shards cannot be mixed with other speech: write that to shards too, and name both folders."
        )
    skipped: list[Any] = []
    splits: dict[str, dict[str, list[Recording]]] = {}
    sources_by_role: dict[Role, tuple[str, ...]] = {
        "speech": () if all(sharded) else data.speech, "noise": data.noise, "rooms": data.rooms
    }  # fmt: skip
    for role, sources in sources_by_role.items():
        splits[role] = {"train": [], "valid": []}
        if sources:
            prepared = prepare_all(sources, role, cache=run / "manifests" / "cache", progress=_progress(report, role))
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
    if skipped:
        write_skipped(run / "skipped.jsonl", skipped)
        logger.warning("%d recordings cannot be used; they are listed in %s", len(skipped), run / "skipped.jsonl")
    shards: list[Shard] = []
    spool = None
    if all(sharded):
        shards, spool, splits["speech"]["valid"], voices = from_shards(recipe, run, rank)
    train = [r for r in splits["speech"]["train"] if r.seconds >= data.min_seconds]
    valid = _enough([r for r in splits["speech"]["valid"] if r.seconds >= data.min_seconds], recipe)
    if not train and not shards:
        raise UserError(
            f"No speech of at least {data.min_seconds:g} s is left for training: add some, or lower data.min_seconds."
        )
    if not valid:
        raise UserError("No speech is held out for validation: give more recordings or raise data.valid_fraction.")
    for kind, parts in splits.items():
        for name, recordings in parts.items():
            if recordings and not (shards and kind == "speech"):
                write_manifest(run / "manifests" / f"{kind}-{name}.jsonl", recordings)
    heard = recipe.environment
    judged = heard.model_copy(
        update={
            "clean": 0.0, "noise": 1.0, "reverb": 1.0, "both": 1.0,
            "curriculum": heard.curriculum.model_copy(update={"steps": 0}),
        }
    )  # fmt: skip
    return Materials(
        train,
        valid,
        _environment(heard, splits, "train", voices if shards else train, recipe),
        _environment(judged, splits, "valid", valid, recipe),
        splits["noise"],
        splits["rooms"],
        len(skipped),
        shards,
        spool,
    )


def _environment(
    config: EnvironmentConfig,
    splits: dict[str, dict[str, list[Recording]]],
    split: str,
    speech: list[Recording],
    recipe: Recipe,
) -> Environment:
    return Environment.build(
        config,
        noise=splits["noise"][split],
        rooms=splits["rooms"][split],
        speech=speech,
        seed=recipe.training.seed,
        split=split,
        cache_mb=recipe.data.noise_cache_mb,
    )


def _enough(valid: list[Recording], recipe: Recipe) -> list[Recording]:
    """At most `valid_seconds` of held-out speech, taken evenly over the list so that every speaker has a chance."""
    limit, crop = recipe.data.valid_seconds, recipe.data.crop_seconds
    total = sum(min(r.seconds, crop) for r in valid)
    if total <= limit:
        return valid
    count = max(1, round(len(valid) * limit / total))
    return [valid[i * len(valid) // count] for i in range(count)]


def _progress(report: Reporter | None, role: str) -> Callable[[int, int], None] | None:
    return None if report is None else lambda done, total: report(f"scanning {role}", done, total)
