"""Weight files → the tensors of a module, without running anything that a file holds and without more memory than it has.

safetensors are read as they are. A ``.bin`` is a pickle: it is opened by PyTorch's restricted unpickler only, after its
directory and the names in it were looked at, because even the restricted one builds what a few bytes can make endless.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..errors import UserError, explained

NEEDED = re.compile(
    r"collections\.OrderedDict|torch\.(_utils\._rebuild_(tensor(_v2)?|parameter)|storage\.UntypedStorage|"
    r"(Float|Half|BFloat16|Double|Long|Int|Short|Char|Byte|Bool)Storage)"
)
"""All that a pickled state dict has to name."""

PICKLE_BYTES = 1 << 26
ADVICE = "copy or download config.json and weights again from one place."
COMPUTED = ("masked_spec_embed", "num_batches_tracked", "inv_freq")
"""Ends of names that a file may lack: unused without masking, or known without the file."""

WEIGHT_NORM = {".weight_g": ".parametrizations.weight.original0", ".weight_v": ".parametrizations.weight.original1"}
"""How weight normalisation was written before and after PyTorch's parametrizations."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its shape, and a function that reads it."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


Weights = Mapping[str, StoredTensor]


def open_weights(files: Iterable[Path]) -> Weights:
    """List the tensors of one or several weight files under today's names; none of them is read yet.

    Raises:
        UserError: for a file that is damaged, holds more than tensors, or repeats a tensor of another.
    """
    found: dict[str, StoredTensor] = {}
    for file in files:
        with explained(f"The weights {file} are cut or damaged", "copy or download them again."):
            listed = _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)
        for name, stored in listed.items():
            for old, new in WEIGHT_NORM.items():
                name = name.removesuffix(old) + new if name.endswith(old) else name
            if name in found:
                raise UserError(f"{file} holds {name}, which stands in another file too: download the model again.")
            found[name] = stored
    return found


def _safetensors(file: Path) -> dict[str, StoredTensor]:
    opened = safe_open(file, framework="pt")
    return {
        name: StoredTensor(tuple(opened.get_slice(name).get_shape()), partial(opened.get_tensor, name))
        for name in opened.keys()  # noqa: SIM118
    }


def _pickled(file: Path) -> dict[str, StoredTensor]:
    whole = zipfile.is_zipfile(file)
    if whole:
        check_archive(file)
    else:  # PyTorch before 1.6: five pickles, then the numbers
        with file.open("rb") as stream:
            for _ in range(5):
                _check_names(stream, file)
    values = torch.load(file, map_location="cpu", weights_only=True, mmap=whole or None)
    tensors = {k: v for k, v in values.items() if isinstance(v, Tensor)} if isinstance(values, dict) else {}
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > file.stat().st_size:  # views that repeat a few numbers
        raise UserError(f"{file} describes {size / 1e6:.0f} MB of weights, more than it holds: download it again.")
    return {k: StoredTensor(tuple(v.shape), partial(_given, v)) for k, v in tensors.items()}


def check_archive(file: Path, also: Collection[str] = ()) -> None:
    """Refuse a checkpoint in a zip file that could unfold without end, or names more than tensors need.

    Args:
        file: as `torch.save` writes it.
        also: further names that its pickle may hold.

    Raises:
        UserError: packed entries, no pickle or several, a foreign name.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        packed = any(e.compress_type != zipfile.ZIP_STORED or e.compress_size != e.file_size for e in entries)
        if packed or sum(e.file_size for e in entries) > file.stat().st_size:
            raise UserError(f"{file} is packed, as PyTorch never does, and may unfold without end: download it again.")
        pickles = [e for e in entries if e.filename.endswith("data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > PICKLE_BYTES:
            raise UserError(f"{file} is no file of tensors: give a saved state dict or model.safetensors.")
        with archive.open(pickles[0]) as stream:
            _check_names(stream, file, also)


def _check_names(stream: IO[bytes], file: Path, also: Collection[str] = ()) -> None:
    for code, argument, _ in pickletools.genops(stream):
        name = str(argument).replace(" ", ".")
        if code.name in ("GLOBAL", "INST") and not NEEDED.fullmatch(name) and name not in also:
            raise UserError(
                f"{file} holds more than tensors ({name[:80]}), and nothing else is taken from a file: have its owner save "
                "tensors and plain values alone."
            )


def match(module: nn.Module, weights: Weights, where: str) -> dict[str, StoredTensor]:
    """Find what fills a module, whose parameters may be on the meta device, whatever head the file has beside it.

    Args:
        module: an encoder; in a file its names may stand behind a prefix ("hubert." of a HubertForCTC).
        weights: of `open_weights`.
        where: names the model in errors.

    Returns:
        name in `module.state_dict()` → tensor; all that the module has but `COMPUTED`.

    Raises:
        UserError: the weights are those of another model than the config describes.
    """
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    anchor = next(name for name in wanted if not name.endswith(COMPUTED))
    prefixes = [name.removesuffix(anchor) for name in weights if name == anchor or name.endswith(f".{anchor}")]
    prefix = max(prefixes, key=lambda p: sum(p + name in weights for name in wanted), default="")
    mine = {name.removeprefix(prefix): stored for name, stored in weights.items() if name.startswith(prefix)}
    missing = [name for name in wanted if name not in mine and not name.endswith(COMPUTED)]
    if missing:
        some = ", ".join(list(weights)[:2]) or "nothing"
        lack = f"lack {len(missing)} of the {len(wanted)} tensors that its config describes"
        raise UserError(f"The weights of {where} {lack} (such as {missing[0]}; they hold {some}, …): {ADVICE}")
    wrong = [name for name in wanted if name in mine and mine[name].shape != wanted[name]]
    if wrong:
        theirs, ours = _by(wanted[wrong[0]]), _by(mine[wrong[0]].shape)
        raise UserError(f"The config of {where} describes {wrong[0]} as {theirs}, its weights hold {ours}: {ADVICE}")
    parts = {name.split(".")[0] for name in wanted}
    surplus = [n for n in mine if n not in wanted and n.split(".")[0] in parts and not n.endswith((*COMPUTED, ".pe"))]
    if surplus:
        more = f"{len(surplus)} tensors that its config does not know (such as {surplus[0]})"
        raise UserError(f"The weights of {where} hold {more}: {ADVICE}")
    return {name: mine[name] for name in wanted if name in mine}


@torch.no_grad()
def fill(module: nn.Module, found: Mapping[str, StoredTensor], where: str) -> None:
    """Copy what `match` found into a module, tensor by tensor, in the module's precision."""
    for name, target in module.state_dict().items():
        if name not in found:
            if name.endswith("masked_spec_embed"):
                target.zero_()
            continue
        source = found[name].read()
        if source.is_floating_point() != target.is_floating_point():
            raise UserError(f"The weights of {where} are quantised ({name}): give the model in 16 or 32 bits.")
        target.copy_(source)


def check_agreement(one: Weights, other: Weights, where: str) -> None:
    """Refuse two files of weights for one model that differ in a shape or, beyond half precision, in a small tensor."""
    common = [name for name in one if name in other]
    differing = [
        name
        for name in common
        if one[name].shape != other[name].shape
        or (
            torch.Size(one[name].shape).numel() <= 1 << 14
            and not torch.allclose(one[name].read().double(), other[name].read().double(), rtol=0.02, atol=1e-4)
        )
    ]
    if differing or not common:
        raise UserError(
            f"{where} holds two weights that differ ({differing[0] if differing else 'they have no tensor in common'}): delete "
            "the one that is not the model's."
        )


def _given(tensor: Tensor) -> Tensor:
    return tensor


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"
