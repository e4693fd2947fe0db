"""Features → loss: the distillation terms, the enhancement terms, and their sum."""
