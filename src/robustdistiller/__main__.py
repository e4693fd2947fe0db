"""``python -m robustdistiller``, which is also what torchrun starts."""

from .cli import main

main()
