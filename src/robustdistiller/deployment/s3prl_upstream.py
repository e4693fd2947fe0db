"""Our students as an upstream of s3prl, for the SUPERB benchmark with its own code.

In a Python session with s3prl installed:

    from robustdistiller.deployment import s3prl_upstream
    s3prl_upstream.register()                     # from now on s3prl knows the upstream "robustdistiller"

and `robustdistiller_predictions` for the states and the predicted teacher layers. To use s3prl's own command line, start it
through this module, with the arguments of its run_downstream.py:

    python -m robustdistiller.deployment.s3prl_upstream -m train -u robustdistiller -k STUDENT -d keyword_spotting -n name
"""

from __future__ import annotations

from typing import Any

if __name__ == "__main__":
    from ..process import prepare_process

    prepare_process()  # before torch is imported

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..errors import UserError, optional
from ..models.encoder import EncoderOutput
from ..models.frames import GRID, mask_from_lengths
from ..models.student import load_student


class UpstreamExpert(nn.Module):
    """s3prl's interface of an upstream: a list of waveforms in, a dictionary of hidden states out.

    ckpt: a student folder or hub name; predictions: also show the predicted teacher layers. The features of an utterance do
    not depend on what it is batched with. It can be fine-tuned.
    """

    def __init__(self, ckpt: str, model_config: str | None = None, predictions: bool = False, **unused: Any):
        super().__init__()
        if not ckpt:
            raise UserError("The upstream needs a student: pass its folder with -k (ckpt=…).")
        self.student = load_student(ckpt)
        self.predictions = predictions
        if predictions and self.student.heads is None:
            raise UserError(f"The student {ckpt} has no prediction heads: use the upstream without predictions.")
        # Only the encoder is an upstream; s3prl counts and trains whatever is registered here.
        self.student.enhancer = None
        if not predictions:
            self.student.heads = None

    def get_downsample_rates(self, key: str) -> int:
        """Samples per frame of every output."""
        return GRID.stride

    def forward(self, wavs: list[Tensor]) -> dict[str, Any]:
        """Waveforms (T,) of 16 kHz, any number of lengths → hidden_states, a list of (B, F, D), and last_hidden_state."""
        lengths = torch.tensor([len(wave) for wave in wavs], device=wavs[0].device)
        output = self.student(pad_sequence(wavs, batch_first=True), lengths, predict=self.predictions, enhance=False)
        encoded: EncoderOutput = output.encoded
        valid = mask_from_lengths(encoded.lengths, encoded.cnn.shape[1])[..., None]
        states = [state * valid for state in encoded.states]
        last = states[-1]
        if output.predictions is not None:
            states += [prediction * valid for prediction in output.predictions.unbind(1)]
        return {"hidden_states": states, "last_hidden_state": last}


def robustdistiller(ckpt: str, model_config: str | None = None, **options: Any) -> UpstreamExpert:
    """The entry that s3prl's hub lists."""
    return UpstreamExpert(ckpt, model_config, **options)


def robustdistiller_predictions(ckpt: str, model_config: str | None = None, **options: Any) -> UpstreamExpert:
    """The same with the predicted teacher layers among its states."""
    return UpstreamExpert(ckpt, model_config, predictions=True, **options)


def register() -> None:
    """Make both entries known to s3prl. Raises `UserError` when s3prl is not installed."""
    hub = optional("s3prl.hub", "all", "Registering the upstream")
    for entry in (robustdistiller, robustdistiller_predictions):
        setattr(hub, entry.__name__, entry)


if __name__ == "__main__":
    import runpy

    register()
    runpy.run_module("s3prl.run_downstream", run_name="__main__", alter_sys=True)
