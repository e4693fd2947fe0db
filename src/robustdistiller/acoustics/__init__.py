"""From clean to contaminated: noise, rooms, and the scenes that put an utterance into them."""
