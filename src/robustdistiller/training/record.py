"""What a run folder remembers: the resolved recipe, versions, seed, digests of the data, and what changed on resume."""

from __future__ import annotations

import logging
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from .. import __version__
from ..config import Recipe, recipe_from_dict
from ..errors import UserError
from ..files import read_json, write_json
from .environment import Materials

logger = logging.getLogger(__name__)

RECIPE, RECORD = "recipe.yaml", "run.json"

# Fields that do not touch the result, and those without which a checkpoint no longer fits.
HARMLESS = ("name", "notes", "data.workers", "data.noise_cache_mb", "training.log_every", "training.save_every",
            "training.valid_every", "training.keep")  # fmt: skip
STRUCTURAL = ("teacher.", "student.", "objectives.enhancement.")
NOT_STRUCTURAL = ("teacher.precision", "student.dropout", "student.feature_grad_mult", "objectives.enhancement.loss",
                  "objectives.enhancement.weight", "objectives.enhancement.dropout")  # fmt: skip


def check_resumable(run: Path, recipe: Recipe, resume: bool, started: bool) -> None:
    """Refuse to start over a run, or to resume with a recipe whose student is another; log other changes.

    Raises `UserError` with what to do.
    """
    if started and not resume:
        raise UserError(f"{run} already holds a run: add --resume to go on with it, or choose another --out.")
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file: choose another --out.")
    if not (started and (run / RECIPE).is_file()):
        return
    try:
        before = recipe_from_dict(
            yaml.safe_load((run / RECIPE).read_text(encoding="utf-8")), str(run / RECIPE)
        ).to_dict()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{run / RECIPE} cannot be read: restore it, or start anew with another --out.") from error
    changes = list(_changes(before, recipe.to_dict()))
    fatal = [c for c in changes if c[0].startswith(STRUCTURAL) and c[0] not in NOT_STRUCTURAL]
    if fatal:
        name, old, new = fatal[0]
        raise UserError(
            f"The run in {run} was started with {name}={old}, now it is {new}: its checkpoints do not fit; undo the change or "
            "choose another --out."
        )
    for name, old, new in changes:
        meaning = "does not touch the result" if name in HARMLESS else "from here on; the run is no longer one recipe"
        logger.warning("resuming with %s=%s instead of %s (%s)", name, new, old, meaning)


def record_run(
    run: Path, recipe: Recipe, materials: Materials, precision: str, processes: int, resumed_at: int | None
) -> None:
    """Write ``recipe.yaml`` and ``run.json``; a resume adds a row to the latter and keeps the rest."""
    import torch
    import transformers

    recipe.save(run / RECIPE)
    earlier: dict[str, Any] = read_json(run / RECORD, "run record") if (run / RECORD).is_file() else {}
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "step": resumed_at or 0,
        "processes": processes,
        "precision": precision,
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
        logger.warning("the data are not those that the run was started with: %s", ", ".join(changed))
    starts = [*earlier.get("starts", []), start] if resumed_at is not None else [start]
    write_json(run / RECORD, {"seed": recipe.training.seed, "data": digests, "starts": starts})


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
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
