"""Loss → weights: the materials of a run, its loop, validation and checkpoints."""
