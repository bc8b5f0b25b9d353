"""Task-blind building blocks, each written once and shared by all systems."""
