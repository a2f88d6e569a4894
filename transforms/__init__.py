"""Transforms: a sample in, a new sample out; files to tensors and back."""
