"""A static page in which a browser contaminates speech and runs the exported models on it."""
