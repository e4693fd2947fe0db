"""Audio, the first room: from files to clean 16 kHz mono waves, and which of them to read when."""
