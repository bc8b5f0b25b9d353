"""Evaluations of a frozen image tower beyond its own tasks: zero-shot, by probes, and through a language model."""
