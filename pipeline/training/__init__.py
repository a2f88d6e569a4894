"""Training: Lightning module and data, and one file per way to learn."""
