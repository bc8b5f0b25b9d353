"""Data: readers, drawn scenes, transforms, augmentation, mixtures, loaders, checks and writers."""
