"""The standard corpora by name: what each file says about itself through its place, its name and the lists beside it.

A corpus is recognised by the names of its files, so any part of it (one fold, one subset) works as a source. Its rows
are those of a manifest without durations: speaker and text of speech, class of noise, and the `group` that splits must
not share, which is the recording that slices of noise were cut from and the room of an impulse response.
"""

from __future__ import annotations

import csv
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import UserError
from ..files import StrPath
from .io import find_audio

log = logging.getLogger(__name__)

Role = Literal["speech", "noise", "rooms"]
Row = dict[str, Any]
Matches = Iterator[tuple[Path, re.Match[str]]]


@dataclass(frozen=True)
class Corpus:
    """A known layout: how its files are named, what they can serve as, and how a row is made of each."""

    pattern: re.Pattern[str]  # searched in the whole path, with forward slashes
    roles: tuple[Role, ...]
    rows: Callable[[Matches, Role], Iterator[Row]]
    layout: str  # in one line, for whoever has it otherwise


def _librispeech(matches: Matches, role: Role) -> Iterator[Row]:
    splits = {"train": "train", "dev": "valid", "test": "test"}
    texts: dict[str, str] = {}
    chapter = None
    for path, name in matches:
        if path.parent != chapter:  # files are sorted: one chapter's transcripts in memory at a time
            chapter = path.parent
            lines = _lines(chapter / f"{name['speaker']}-{name['chapter']}.trans.txt")
            texts = dict(line.split(" ", 1) for line in lines if " " in line)
        row = {"path": path, "speaker": name["speaker"], "split": splits.get((name["subset"] or "").split("-")[0])}
        yield row | ({"text": texts[path.stem]} if path.stem in texts else {})


def _musan(matches: Matches, role: Role) -> Iterator[Row]:
    for path, name in matches:
        if name["kind"] == role:
            # The point-source noises of RIRS_NOISES are the same clips: the group keeps both in one split.
            yield {"path": path} | ({"group": path.stem} if role == "noise" else {})


_URBAN_CLASSES = (
    "air_conditioner", "car_horn", "children_playing", "dog_bark", "drilling",
    "engine_idling", "gun_shot", "jackhammer", "siren", "street_music",
)  # fmt: skip
_URBAN_LEFT_OUT = (2, 9)  # children_playing holds voices and street_music songs: left out by the paper


def _urbansound8k(matches: Matches, role: Role) -> Iterator[Row]:
    for path, name in matches:
        label = int(name["label"])
        if label in _URBAN_LEFT_OUT or label >= len(_URBAN_CLASSES):
            continue
        fold = re.fullmatch(r"fold(\d+)", path.parent.name)
        # The source is a number of freesound.org, as it is in ESC-50: what both hold gets the same group.
        row = {"path": path, "label": _URBAN_CLASSES[label], "group": name["source"]}
        yield row | ({"fold": int(fold[1])} if fold else {})


def _rirs_noises(matches: Matches, role: Role) -> Iterator[Row]:
    for path, name in matches:
        if name["point"]:
            kind, group = "noise", path.stem
        elif name["size"]:
            kind, group = "rooms", f"{name['size']}-{name['room']}"
        else:
            kind = "noise" if "_noise_" in path.name else "rooms"
            group = _measured_room(path.stem)
        if kind == role:
            yield {"path": path, "group": group, "origin": "simulated" if name["size"] else "measured"}


def _measured_room(stem: str) -> str:
    """The room of a measured response: never finer than the truth, so that no room can end up in two splits."""
    for pattern in (
        r"^RVB2014_type\d_(?:rir|noise)_(?P<room>[a-z]+room\d)",
        r"^RWCP_type\d_(?:rir|noise)_(?:circle|cirline)_(?P<room>[a-z0-9]+)",
        r"^air_.*_(?P<room>aula_carolina|booth|office|meeting|lecture|stairway|bathroom|corridor|kitchen)",
    ):
        if found := re.match(pattern, stem):
            return f"{stem.split('_')[0]}-{found['room']}"
    return "_".join(stem.split("_")[:2])


def _esc50(matches: Matches, role: Role) -> Iterator[Row]:
    tables: dict[Path, dict[str, Row]] = {}
    for path, name in matches:
        table = _cached_table(tables, path.parents[1] / "meta" / "esc50.csv", "filename")
        label = table.get(path.name, {}).get("category") or f"class-{name['label']}"
        yield {"path": path, "label": label, "group": name["source"], "fold": int(name["fold"])}


def _demand(matches: Matches, role: Role) -> Iterator[Row]:
    for path, name in matches:
        if int(name["channel"]) == 1:  # the sixteen microphones recorded the same minutes
            yield {"path": path, "label": name["place"], "group": name["place"]}


def _speech_commands(matches: Matches, role: Role) -> Iterator[Row]:
    lists: dict[Path, dict[str, str]] = {}
    for path, name in matches:
        if name["background"]:
            if role == "noise":
                yield {"path": path, "label": path.stem, "group": path.stem}
        elif role == "speech":
            root = path.parents[1]
            if root not in lists:
                valid, test = (_lines(root / f"{part}_list.txt") for part in ("validation", "testing"))
                splits = dict.fromkeys(valid, "valid") | dict.fromkeys(test, "test")
                lists[root] = splits
            split = lists[root].get(f"{path.parent.name}/{path.name}", "train") if lists[root] else None
            yield {"path": path, "label": path.parent.name, "speaker": name["speaker"], "split": split}


def _fluent(matches: Matches, role: Role) -> Iterator[Row]:
    tables: dict[Path, dict[str, Row]] = {}
    for path, name in matches:
        root = Path(path.as_posix()[: name.start("inner")])
        row: Row = {"path": path, "speaker": name["speaker"]}
        for split in ("train", "valid", "test"):
            known = _cached_table(tables, root / "data" / f"{split}_data.csv", "path").get(name["inner"])
            if known:
                slots = {slot: known.get(slot) for slot in ("action", "object", "location")}
                row |= {"split": split, "text": known.get("transcription"), "slots": slots}
                row["label"] = " ".join(str(value) for value in slots.values())
                break
        yield row


def _iemocap(matches: Matches, role: Role) -> Iterator[Row]:
    # The usual four classes: excitement counts as happiness, the other emotions are left out.
    classes = {"neu": "neu", "hap": "hap", "exc": "hap", "sad": "sad", "ang": "ang"}
    dialog: Path | None = None
    labels: dict[str, str] = {}
    texts: dict[str, str] = {}
    for path, name in matches:
        session = Path(path.as_posix()[: name.end("session")])
        if dialog != session / name["dialog"]:
            dialog = session / name["dialog"]
            lines = _lines(session / "dialog" / "EmoEvaluation" / f"{name['dialog']}.txt")
            fields = [line.split("\t") for line in lines if line.startswith("[")]
            labels = {field[1]: classes[field[2]] for field in fields if len(field) > 2 and field[2] in classes}
            lines = _lines(session / "dialog" / "transcriptions" / f"{name['dialog']}.txt")
            found = (re.match(r"(\S+) \[[^]]*\]: ?(.*)", line) for line in lines)
            texts = {text[1]: text[2] for text in found if text}
        if path.stem in labels:
            speaker = f"Ses{name['number']}{name['gender']}"
            row = {"path": path, "speaker": speaker, "label": labels[path.stem], "session": int(name["number"])}
            yield row | ({"text": texts[path.stem]} if path.stem in texts else {})


def _vctk(matches: Matches, role: Role) -> Iterator[Row]:
    for path, name in matches:
        row = {"path": path, "speaker": name["speaker"]}  # which both microphones share
        root = Path(path.as_posix()[: name.start("speaker")]).parent
        text = " ".join(_lines(root / "txt" / name["speaker"] / f"{name['speaker']}_{name['number']}.txt"))
        yield row | ({"text": text.strip()} if text.strip() else {})


def _common_voice(matches: Matches, role: Role) -> Iterator[Row]:
    root: Path | None = None
    known: dict[str, Row] = {}
    for path, _ in matches:
        if path.parents[1] != root:
            root, known = path.parents[1], {}
            for table, split in (("validated", None), ("train", "train"), ("dev", "valid"), ("test", "test")):
                for row in csv.DictReader(_lines(root / f"{table}.tsv"), delimiter="\t", quoting=csv.QUOTE_NONE):
                    known[str(row.get("path"))] = row | {"split": split}
        told = known.get(path.name, {})
        row = {"path": path, "speaker": told.get("client_id"), "text": told.get("sentence"), "split": told.get("split")}
        yield {name: value for name, value in row.items() if value}


def _ami(matches: Matches, role: Role) -> Iterator[Row]:
    for path, name in matches:
        # Four people meet four times, and every microphone records all of them: a group is what splits must not share.
        yield {"path": path, "group": name["series"], "session": name["meeting"], "microphone": name["microphone"]}


_MICROPHONE = re.compile(r"[_.-](?:mic|ch|chan|channel|array)[_-]?\d+$", re.IGNORECASE)
_SPEAKER = re.compile(r"(?:spk|speaker|spkr|talker|sp|id|[spfm])[_-]?\d+", re.IGNORECASE)


def _folder(matches: Matches, role: Role) -> Iterator[Row]:
    """Any files. Parallel microphones share a group; folders are speakers where all files lie in such."""
    paths = [path for path, _ in matches]
    takes = Counter(_take(path) for path in paths)
    speakers = role == "speech" and len({path.parent for path in paths}) > 1 and all(map(_of_speaker, paths))
    for path in paths:
        row: Row = {"path": path}
        if speakers:
            row["speaker"] = path.parent.name
        if takes[_take(path)] > 1:
            row["group"] = _take(path).as_posix()
        yield row


def _take(path: Path) -> Path:
    """A recording without what tells its microphones apart."""
    return path.with_name(_MICROPHONE.sub("", path.stem)) if _MICROPHONE.search(path.stem) else path


def _of_speaker(path: Path) -> bool:
    """Whether the folder is named like a speaker, or the file after its folder."""
    folder = path.parent.name
    named = len(path.stem) > len(folder) and path.stem.startswith(folder) and not path.stem[len(folder)].isalnum()
    return named or _SPEAKER.fullmatch(folder) is not None


_RIR_FILE = (
    r"(?:(?P<size>small|medium|large)room/(?P<room>Room\d+)/Room\d+-\d+\.\w+|(?:RVB2014|RWCP|air)_type\d_[^/]+"
    r"|(?P<point>pointsource_noises)/[^/]+)$"
)
_CORPORA: tuple[tuple[str, tuple[Role, ...], Callable[[Matches, Role], Iterator[Row]], str, str], ...] = (
    ("librispeech", ("speech",), _librispeech,
     "train-clean-100/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac",
     r"(?:/(?P<subset>[^/]+))?/(?P<speaker>\d+)/(?P<chapter>\d+)/(?P=speaker)-(?P=chapter)-\d+\.\w+$"),
    ("musan", ("noise", "speech"), _musan,
     "noise/free-sound/noise-free-sound-0000.wav",
     r"/(?P<kind>noise|speech|music)/[^/]+/(?P=kind)-[\w-]+-\d{4}\.\w+$"),
    ("urbansound8k", ("noise",), _urbansound8k,
     "audio/fold1/<source>-<class>-<occurrence>-<slice>.wav",
     r"/(?P<source>\d+)-(?P<label>\d)-\d+-\d+\.\w+$"),
    ("dns_rirs", ("rooms", "noise"), _rirs_noises,
     "SLR26/simulated_rirs_48k/smallroom/Room001/Room001-00001.wav and SLR28/RIRS_NOISES/",
     r"/SLR2[68]/(?:.*/)?" + _RIR_FILE),
    ("rirs_noises", ("rooms", "noise"), _rirs_noises,
     "simulated_rirs/smallroom/Room001/Room001-00001.wav and real_rirs_isotropic_noises/",
     "/" + _RIR_FILE),
    ("esc50", ("noise",), _esc50,
     "audio/<fold>-<source>-<take>-<class>.wav and meta/esc50.csv",
     r"/(?P<fold>\d)-(?P<source>\d+)-[A-Z]-(?P<label>\d+)\.\w+$"),
    ("demand", ("noise",), _demand, "DKITCHEN/ch01.wav",
     r"/(?P<place>[A-Z]+)/ch(?P<channel>\d\d)\.\w+$"),
    ("speech_commands", ("speech", "noise"), _speech_commands,
     "<word>/<speaker>_nohash_<number>.wav and _background_noise_/",
     r"/(?:[^/]*?(?P<speaker>[0-9a-f]{8})_nohash_\d+|(?P<background>_background_noise_)/[^/]+)\.\w+$"),
    ("fluent_speech_commands", ("speech",), _fluent,
     "wavs/speakers/<speaker>/<utterance>.wav and data/train_data.csv",
     r"/(?P<inner>wavs/speakers/(?P<speaker>\w+)/[^/]+\.\w+)$"),
    ("iemocap", ("speech",), _iemocap,
     "Session1/sentences/wav/<dialog>/<utterance>.wav and Session1/dialog/EmoEvaluation/<dialog>.txt",
     r"(?P<session>/Session\d)/sentences/wav/(?P<dialog>Ses(?P<number>\d\d)[^/]+)/[^/]+_(?P<gender>[FM])\d+\.\w+$"),
    ("vctk", ("speech",), _vctk,
     "wav48_silence_trimmed/<speaker>/<speaker>_<number>_mic1.flac and txt/",
     r"/(?P<speaker>[ps]\d+)/(?P=speaker)_(?P<number>\d{3})(?:_mic\d)?\.\w+$"),
    ("common_voice", ("speech",), _common_voice,
     "clips/common_voice_<language>_<number>.mp3 and validated.tsv, train.tsv, dev.tsv, test.tsv",
     r"/clips/common_voice_[\w-]+_\d+\.\w+$"),
    ("ami", ("speech",), _ami, "amicorpus/<meeting>/audio/<meeting>.Headset-0.wav",
     r"/(?P<meeting>(?P<series>(?:ES20|IS10|TS30|EN20|IB40|IN10)\d\d)\w)\.(?P<microphone>[\w-]+)\.\w+$"),
    ("folder", ("speech", "noise", "rooms"), _folder, "any audio files", ""),
)  # fmt: skip
CORPORA = {name: Corpus(re.compile(pattern), roles, rows, layout) for name, roles, rows, layout, pattern in _CORPORA}


def scan_corpus(
    folder: StrPath, role: Role, name: str | None = None, failed: list[OSError] | None = None
) -> tuple[str, list[Row]]:
    """The corpus that `folder` holds (found by its file names, or `name`) and a manifest row without duration per file.

    Folders in it that cannot be read are told to `failed`. Raises `UserError` for a folder without audio, or one that holds
    nothing for `role` in the layout of its corpus.
    """
    folder = Path(os.path.abspath(folder))
    failed = [] if failed is None else failed
    files = find_audio(folder, failed)
    if not files and failed:
        raise UserError(f"The folder {failed[0].filename} cannot be read ({failed[0].strerror}): mend that.")
    if not files:
        raise UserError(f"The folder {folder} holds no audio files: give the folder that does, or a manifest.")
    name = name or detect(files)
    corpus = CORPORA[name]
    if role not in corpus.roles:
        raise UserError(
            f"{folder} is the corpus {name}, which holds no {role}: give it as {' or '.join(corpus.roles)}, "
            f"or as folder:{folder} to take all its files."
        )
    found = ((path, corpus.pattern.search(path.as_posix())) for path in files)
    rows = list(corpus.rows(((path, match) for path, match in found if match), role))
    if not rows:
        advice = f"give its root, or folder:{folder} to take all its files"
        raise UserError(f"{folder} holds no {role} in the layout of {name} ({corpus.layout}): {advice}.")
    log.info("%s: %s, %d of %d files serve as %s", folder, name, len(rows), len(files), role)
    return name, _with_ids(rows, folder)


def detect(files: Sequence[Path]) -> str:
    """The name of the corpus whose layout nearly all `files` have, else "folder"."""
    names = [path.as_posix() for path in files]
    for name, corpus in CORPORA.items():
        # IEMOCAP and Speech Commands keep a few files of another kind beside the utterances.
        if name != "folder" and sum(1 for n in names if corpus.pattern.search(n)) >= 0.95 * len(names):
            return name
    return "folder"


def _with_ids(rows: list[Row], folder: Path) -> list[Row]:
    """Ids are paths below the folder without suffix, or with it where two files differ by nothing else."""
    seen: set[str] = set()
    for row in rows:
        inner = row["path"].relative_to(folder)
        name = inner.with_suffix("").as_posix()
        row["id"] = inner.as_posix() if name in seen else name
        seen.add(row["id"])
        row["path"] = str(row["path"])
    return rows


def _lines(path: Path) -> list[str]:
    """The lines of a list that a copy of a corpus may lack; bytes that are not UTF-8 are replaced."""
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError:
        return []


def _cached_table(tables: dict[Path, dict[str, Row]], path: Path, key: str) -> dict[str, Row]:
    if path not in tables:
        tables[path] = {str(row.get(key)): row for row in csv.DictReader(_lines(path))}
    return tables[path]
