"""What a run folder remembers: the resolved recipe, versions, seed, digests of the data, and what changed on resume."""

from __future__ import annotations

import logging
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .. import __version__
from ..config import Recipe
from ..errors import UserError
from ..files import read_json, read_mapping, write_json
from ..models.teacher import Teacher
from ..schema import validated
from .materials import Materials

logger = logging.getLogger(__name__)

RECIPE, RECORD = "recipe.yaml", "run.json"

# Fields that do not touch the result, and those without which a checkpoint no longer fits.
HARMLESS = ("name", "notes", "data.workers", "data.noise_cache_mb", "data.spool", "teacher.cache_gb", "training.log_every",
            "training.save_every", "training.keep", "training.timeout")  # fmt: skip
MEANINGS = {
    "training.steps": "another end, and with it another learning rate at every step to come",
    "training.seed": "other batches, crops, contaminations and dropout from here on, and perhaps other held-out speakers",
    "training.valid_every": "the same steps, but the best of other validations becomes the student",
    "training.precision": "other rounding from here on",
    "training.compile": "other rounding from here on",
    "teacher.cache": "targets in half precision or no longer: the last bits differ from here on",
    "data.microbatch_seconds": "other shares of a batch, and so other dropout from here on",
    "training.": "another optimisation from here on",
    "data.": "other speech, noise or batches from here on; compare the digests in run.json",
    "environment.": "other contaminations from here on",
    "objectives.": "another loss from here on; its curve and the best validation so far no longer compare",
    "": "another student or teacher behaviour from here on",
}
STRUCTURAL = ("teacher.", "student.", "objectives.enhancement.")
NOT_STRUCTURAL = ("teacher.precision", "teacher.cache", "teacher.cache_gb", "student.dropout", "student.feature_grad_mult",
                  "objectives.enhancement.weight", "objectives.enhancement.dropout",
                  "objectives.enhancement.window_seconds")  # fmt: skip


def check_resumable(run: Path, recipe: Recipe, resume: bool, started: bool) -> None:
    """Refuse to start over a run, or to resume with a recipe whose student is another; log other changes.

    Raises `UserError` with what to do.
    """
    if started and not resume:
        raise UserError(f"{run} already holds a run: add --resume to go on with it, or choose another --out.")
    if not (started and (run / RECIPE).is_file()):
        return
    before = validated(Recipe, read_mapping(run / RECIPE, "recipe of the run"), str(run / RECIPE)).to_dict()
    changes = list(_changes(before, recipe.to_dict()))
    fatal = [c for c in changes if c[0].startswith(STRUCTURAL) and c[0] not in NOT_STRUCTURAL]
    if fatal:
        name, old, new = fatal[0]
        raise UserError(
            f"The run in {run} was started with {name}={old}, now {new}, which do not fit: choose another --out."
        )
    for name, old, new in changes:
        meaning = "does not touch the result" if name in HARMLESS else _meaning(name)
        logger.warning("resuming with %s=%s instead of %s (%s)", name, new, old, meaning)
    touching = [name for name, *_ in changes if name not in HARMLESS]
    if touching:
        logger.warning("the run is no longer one recipe: it is not what %s alone would give", ", ".join(touching))


def _meaning(name: str) -> str:
    return MEANINGS.get(name) or next(text for start, text in MEANINGS.items() if name.startswith(start))


def record_run(
    run: Path,
    recipe: Recipe,
    materials: Materials,
    teacher: Teacher,
    precision: str,
    processes: int,
    resumed_at: int | None,
) -> None:
    """Write ``recipe.yaml`` and ``run.json``; a resume adds a row to the latter and keeps the rest."""
    import torch
    import transformers

    recipe.save(run / RECIPE)
    earlier = _earlier(run / RECORD)
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "step": resumed_at or 0,
        "processes": processes,
        "precision": precision,
        "teacher": f"{teacher.name} ({teacher.source})",
        "versions": {
            "robustdistiller": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "commit": _commit(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    digests = materials.digests()
    changed = [name for name, value in digests.items() if earlier.get("data", digests).get(name) != value]
    if changed:
        logger.warning("the data changed since the run was started: %s; it learns from others", ", ".join(changed))
    if resumed_at is not None and earlier.get("starts"):
        last = earlier["starts"][-1]
        for name in ("teacher", "precision", "processes", "versions", "machine", "commit"):
            if last.get(name, start[name]) != start[name]:
                was = last.get(name)
                logger.warning("%s: %s now, %s before; the last bits may differ from here on", name, start[name], was)
    starts = [*earlier.get("starts", []), start] if resumed_at is not None else [start]
    write_json(run / RECORD, {"seed": recipe.training.seed, "data": digests, "starts": starts})


def _earlier(path: Path) -> dict[str, Any]:
    """The record so far, or nothing; raises `UserError` for a file that no run wrote."""
    values = read_json(path, "run record") if path.is_file() else {}
    sound = isinstance(values, dict) and isinstance(values.get("data", {}), dict)
    starts = values.get("starts", []) if sound else None
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise UserError(f"The run record {path} cannot be understood: move it away, and --resume writes a new one.")
    return values


def _changes(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> Any:
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _changes(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name}", old, new


def _commit() -> str | None:
    """The commit of the checkout that the package runs from, if it does."""
    try:
        command, folder = ["git", "rev-parse", "HEAD"], Path(__file__).parent
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
