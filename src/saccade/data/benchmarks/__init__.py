"""Readers of test sets that no task of ours trains on: classified pictures, pictures of words, questions."""
