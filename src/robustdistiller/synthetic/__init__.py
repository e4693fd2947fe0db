"""The built-in corpus: synthetic voices that read sentences, and noises that need no files."""
