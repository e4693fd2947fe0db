"""The verbs about data: prepare and shard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..errors import UserError
from ..outputs import claim_file, claim_workplace, is_json_with
from .bars import Bars
from .options import Overwrite, Workers, argument, number, option
from .output import Json, answer


def prepare(
    source: Annotated[str, argument("A folder, a manifest, `corpus:folder`, or lhotse cuts.")],
    out: Annotated[Path, option("The manifest to write (.jsonl); what is skipped goes beside it.")],
    role: Annotated[str, option("What it holds: speech, noise or rooms.")] = "speech",
    workers: Workers = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Scan audio once and write a manifest: durations, speakers, splits, and what cannot be used.

    Known corpora: librispeech, musan, urbansound8k, rirs_noises, dns_rirs, esc50, demand, speech_commands,
    fluent_speech_commands, iemocap, vctk, common_voice, ami.

    Example: `robustdistiller prepare librispeech:LibriSpeech/ --out manifests/ls.jsonl`
    """
    if role not in ("speech", "noise", "rooms"):
        raise UserError(f"--role is speech, noise or rooms, not {role}.")
    if out.suffix != ".jsonl":
        raise UserError(f"{out} is no name of a manifest: let it end in .jsonl.")
    skipped = out.with_suffix(".skipped.jsonl")
    claim_file(out, "prepare", is_json_with("path", "duration"), [source], overwrite)
    claim_file(skipped, "prepare", is_json_with("path", "reason"), [source], overwrite)
    from ..audio.checking import write_skipped
    from ..audio.manifest import write_manifest
    from ..audio.prepare import prepare as scan

    with Bars() as bars:
        prepared = scan(source, role, workers=workers, progress=bars.of(f"scanning {role}"))  # type: ignore[arg-type]
    write_manifest(out, prepared.recordings)
    if prepared.skipped:
        write_skipped(skipped, prepared.skipped)
    else:
        skipped.unlink(missing_ok=True)
    count, seconds, lost = len(prepared.recordings), prepared.seconds, [vars(row) for row in prepared.skipped]
    answer(
        as_json,
        {"manifest": out, "recordings": count, "seconds": seconds, "skipped": lost, "clipped": prepared.clipped},
        f"{out}: {count} recordings, {seconds / 3600:.2f} h; {len(lost)} skipped, {prepared.clipped} heavily clipped",
    )


def shard(
    sources: Annotated[list[str], argument("Folders, manifests, `corpus:folder`, or lhotse cuts.", "SOURCE...")],
    out: Annotated[Path, option("The folder to write; a command that was stopped goes on.")],
    shard_mb: Annotated[float, number("About so many megabytes in each shard.", 0.01, 1e6, "MB")] = 512.0,
    audio: Annotated[str, option("flac (half the size) or wav.", "--format")] = "flac",
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Write speech as a few large tar files (WebDataset) that `distill --speech OUT` reads from end to end.

    For object storage and for more files than a file system likes. Speakers stay together; what cannot be used is
    listed in `OUT/skipped.jsonl`. Example: `robustdistiller shard librispeech:LibriSpeech/ --out shards/`
    """
    names = ("shard-000000.tar", "shard-000000.json", "shards.json", "skipped.jsonl", "scan")
    claim_workplace(out, "shard", names, ("shards.json",), sources)
    from ..audio.sharding import write_shards

    with Bars() as bars:
        done = write_shards(sources, out, shard_mb, audio, workers, bars.show)  # type: ignore[arg-type]
    answer(
        as_json,
        done.index,
        f"{out}: {len(done.index['shards'])} shards ({done.kept} were there), "
        f"{done.total('recordings'):.0f} recordings, {done.total('seconds') / 3600:.2f} h, "
        f"{done.total('bytes') / 1e9:.3f} GB; {len(done.skipped)} skipped",
    )
