"""Saccade: generalist vision on modern PyTorch."""

__version__ = "0.1.0"
