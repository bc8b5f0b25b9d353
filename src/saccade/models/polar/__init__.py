"""Lesions in polar coordinates (IEEE Access 2021): pixel segmenters, centre predictors, and a wrapper that unrolls."""
