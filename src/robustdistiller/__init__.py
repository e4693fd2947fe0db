"""RobustDistiller: distil large speech encoders into small students that stay accurate in noise and reverberation.

The names below are what most users need; they are imported when first used, so that ``import robustdistiller`` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_WHERE = {
    "UserError": "errors", "Recipe": "config", "load_recipe": "config", "Recording": "audio.manifest",
    "prepare": "audio.prepare", "read_audio": "audio.io", "write_audio": "audio.io",
    "Contaminator": "acoustics.contaminator", "Environment": "acoustics.environment", "EnvironmentConfig": "config",
    "contaminate": "acoustics.contamination", "contaminate_file": "acoustics.contamination", "Student": "models.student",
    "load_student": "models.student", "Teacher": "models.teacher", "load_teacher": "models.teacher",
    "distill": "training.distill", "extract_features": "apply", "enhance_files": "apply",
}  # fmt: skip

__all__ = ["__version__", *_WHERE]

if TYPE_CHECKING:
    from .acoustics.contamination import contaminate, contaminate_file
    from .acoustics.contaminator import Contaminator
    from .acoustics.environment import Environment
    from .apply import enhance_files, extract_features
    from .audio.io import read_audio, write_audio
    from .audio.manifest import Recording
    from .audio.prepare import prepare
    from .config import EnvironmentConfig, Recipe, load_recipe
    from .errors import UserError
    from .models.student import Student, load_student
    from .models.teacher import Teacher, load_teacher
    from .training.distill import distill


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'robustdistiller' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
