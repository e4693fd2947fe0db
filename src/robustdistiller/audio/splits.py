"""Training and validation parts that share no speaker, no noise recording and no room."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from ..randomness import fraction
from .io import SAMPLE_RATE
from .manifest import SPLITS, Recording

log = logging.getLogger(__name__)


def split_by_group(recordings: Sequence[Recording], valid_fraction: float, seed: int = 0) -> dict[str, list[Recording]]:
    """Assign every recording to "train" or "valid" (or the "test" that a manifest names), so that no unit is in two.

    Args:
        recordings: All of one role: speech, noise or rooms.
        valid_fraction: About this share of the units is held out; 0 holds nothing out.
        seed: Of the hash that decides.

    Returns:
        The recordings of "train", "valid" and "test", each with its split as a field.

    A unit is a speaker, else a group (noise recording, room), else the recordings of one file. Splits that manifests
    name are honoured, also for the unnamed rest of a unit; the other units follow a hash of (seed, unit). With two
    units or more, train and valid get at least one each. Where all is one speaker's, single files are the units. Where
    manifests name no valid part at all, their train parts are split like the unnamed.
    """
    named = {recording.split for recording in recordings}
    release = valid_fraction > 0 and "valid" not in named
    if release and "train" in named:
        log.info("no recording is marked valid: some of those marked train are held out")
    fixed = [None if release and recording.split == "train" else recording.split for recording in recordings]

    units = _units(recordings, by_speaker=True)
    if release and len({unit for unit, split in zip(units, fixed, strict=True) if split != "test"}) == 1:
        one = next(recording for recording, split in zip(recordings, fixed, strict=True) if split != "test")
        if one.speaker:  # never a single noise recording or room: those would leak
            log.warning("all speech is the speaker %s's: validation has new recordings, not a new voice", one.speaker)
            units = _units(recordings, by_speaker=False)

    chosen: dict[str, str] = {}
    torn: set[str] = set()
    for unit, split in zip(units, fixed, strict=True):
        if split is not None and chosen.setdefault(unit, split) != split:
            torn.add(unit)
    if torn:
        log.warning("the manifests put parts of %d units (such as '%s') into several splits", len(torn), min(torn))
    seconds: dict[str, float] = defaultdict(float)
    for recording, unit in zip(recordings, units, strict=True):
        if unit not in chosen:
            seconds[unit] += recording.seconds
    chosen |= _assigned(dict(seconds), set(chosen.values()), valid_fraction, seed)

    parts: dict[str, list[Recording]] = {name: [] for name in SPLITS}
    for recording, unit, split in zip(recordings, units, fixed, strict=True):
        split = split or chosen[unit]
        parts[split].append(recording if recording.split == split else replace(recording, split=split))
    return parts


def hold_out_stretch(recording: Recording, valid_fraction: float) -> dict[str, list[Recording]]:
    """Where there is one recording: its end for validation, the rest for training."""
    border = round(recording.seconds * (1 - valid_fraction) * SAMPLE_RATE) / SAMPLE_RATE
    log.warning("there is one recording of speech: its last %.1f s are held out", recording.seconds - border)
    rest = recording.seconds - border
    start = recording.start + border
    return {
        "train": [replace(recording, id=f"{recording.id}@train", seconds=border, split="train")],
        "valid": [replace(recording, id=f"{recording.id}@valid", start=start, seconds=rest, split="valid")],
    }


def _units(recordings: Sequence[Recording], by_speaker: bool) -> list[str]:
    files: dict[str, str] = {}
    for recording in recordings:
        files.setdefault(recording.path, recording.id)
    # Tagged, so that a speaker "7" and a room "7" are not taken for one unit.
    return [
        f"speaker {recording.speaker}" if by_speaker and recording.speaker
        else f"group {recording.group}" if recording.group
        else f"file {files[recording.path]}"
        for recording in recordings
    ]  # fmt: skip


def _assigned(seconds: dict[str, float], present: set[str], valid_fraction: float, seed: int) -> dict[str, str]:
    """Splits of the units that are free to go anywhere; `present` are the splits that have somebody already."""
    chosen: dict[str, str] = {}
    total = sum(seconds.values())
    for unit in seconds:
        split = "valid" if fraction(seed, "split", unit) < valid_fraction else "train"
        # A unit that is most of the corpus is what there is to learn from.
        chosen[unit] = "train" if seconds[unit] > total / 2 else split

    def ensure(split: str, share: float) -> None:
        """Give a split without anybody the smallest unit that is a fair share, at no earlier split's cost."""
        if split in present or split in chosen.values() or share <= 0:
            return
        order, members = SPLITS.index(split), Counter(chosen.values())
        spare = [u for u, s in chosen.items() if SPLITS.index(s) > order or s in present or members[s] > 1]
        spare.sort(key=lambda unit: (seconds[unit], unit))
        modest = [unit for unit in spare if seconds[unit] <= total / 2] or spare[:1]
        if modest:
            chosen[next((unit for unit in modest if seconds[unit] >= share * total), modest[-1])] = split

    ensure("train", 1 - valid_fraction)
    ensure("valid", valid_fraction)
    return chosen
