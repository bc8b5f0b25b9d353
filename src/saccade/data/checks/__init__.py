"""Checks per data set format; :mod:`saccade.data.check` is the door to them."""
