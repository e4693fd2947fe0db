"""The verbs about data: `prepare` and `shard`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import UserError, printable

Bar = Callable[[str], AbstractContextManager[Any]]


def register(app: typer.Typer, bar: Bar, bars: Callable[[Bar], Any]) -> None:
    """Add the verbs to `app`; `bar` opens a progress bar, `bars` shows several, one after another."""

    @app.command()
    def prepare(
        source: Annotated[str, typer.Argument(help="A folder, a manifest, `corpus:folder`, or lhotse cuts.")],
        out: Annotated[Path, typer.Option(help="The manifest to write (.jsonl); what is skipped goes beside it.")],
        role: Annotated[str, typer.Option(help="What it holds: speech, noise or rooms.")] = "speech",
        workers: Annotated[int | None, typer.Option(help="Processes that read files; all cores by default.")] = None,
    ) -> None:
        """Scan audio once and write a manifest: durations, speakers, splits, and what cannot be used.

        Known corpora: librispeech, musan, urbansound8k, rirs_noises, dns_rirs, esc50, demand, speech_commands,
        fluent_speech_commands, iemocap. Example: `robustdistiller prepare librispeech:LibriSpeech/ --out
        manifests/ls.jsonl`
        """
        from .audio.manifest import write_manifest
        from .audio.prepare import prepare as scan
        from .audio.prepare import write_skipped

        if role not in ("speech", "noise", "rooms"):
            raise UserError(f"--role is speech, noise or rooms, not {role}.")
        with bar(f"scanning {role}") as advance:
            prepared = scan(source, role, workers=workers, progress=advance)  # type: ignore[arg-type]
        write_manifest(out, prepared.recordings)
        if prepared.skipped:
            write_skipped(out.with_suffix(".skipped.jsonl"), prepared.skipped)
        print(
            f"{printable(str(out))}: {len(prepared.recordings)} recordings, {prepared.seconds / 3600:.2f} h; "
            f"{len(prepared.skipped)} skipped, {prepared.clipped} heavily clipped"
        )

    @app.command()
    def shard(
        sources: Annotated[
            list[str], typer.Argument(metavar="SOURCE...", help="Folders, manifests, `corpus:folder`, or lhotse cuts.")
        ],
        out: Annotated[Path, typer.Option(help="The folder to write; a command that was stopped goes on.")],
        shard_mb: Annotated[float, typer.Option(help="About so many megabytes in each shard.")] = 512.0,
        audio: Annotated[str, typer.Option("--format", help="flac (half the size) or wav.")] = "flac",
        workers: Annotated[int | None, typer.Option(help="Processes; all cores by default.")] = None,
    ) -> None:
        """Write speech as a few large tar files (WebDataset) that `distill --speech OUT` reads from end to end.

        For object storage and for more files than a file system likes. Speakers stay together; what cannot be used is
        listed in `OUT/skipped.jsonl`. Example: `robustdistiller shard librispeech:LibriSpeech/ --out shards/`
        """
        from .audio.sharding import write_shards

        with bars(bar) as shown:
            done = write_shards(sources, out, shard_mb, audio, workers, shown.show)  # type: ignore[arg-type]
        print(
            f"{printable(str(out))}: {len(done.index['shards'])} shards ({done.kept} were there), "
            f"{done.total('recordings'):.0f} recordings, {done.total('seconds') / 3600:.2f} h, "
            f"{done.total('bytes') / 1e9:.3f} GB; {len(done.skipped)} skipped"
        )
