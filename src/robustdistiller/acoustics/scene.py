"""What happens to one utterance, as a plain value: what is drawn for it, written beside it, and rendered."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter

from .effects import Effects
from .noise import NoiseDraw


@dataclass(frozen=True)
class Scene:
    """What happens to one utterance, as plain values: with the same banks it always sounds the same."""

    utterance: str
    seed: int = 0
    epoch: int = 0
    kind: str = "clean"  # clean | noise | reverb | both
    snr_db: float | None = None  # of the reverberant speech to the mixture of all noises
    noises: tuple[NoiseDraw, ...] = ()
    room: str | None = None  # id of the response that the speech is convolved with
    noise_room: str | None = None  # and the noise, if it is
    t60: float | None = None  # measured, seconds
    effects: Effects = field(default_factory=Effects)
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scene:
        """The inverse of `to_dict`, also after a way through JSON."""
        return TypeAdapter(cls).validate_python(values)

    def silenced(self) -> Scene:
        """This scene for silent speech, which `render` leaves as it is: an SNR could not refer to anything."""
        return Scene(self.utterance, self.seed, self.epoch, note="silent speech is left as it is")
