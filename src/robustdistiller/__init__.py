"""RobustDistiller: distil large speech encoders into small students that stay accurate in noise and reverberation."""

__version__ = "0.1.0"
