"""Numbers → tables, pictures and one self-contained page."""
