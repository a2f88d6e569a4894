"""Inference: windows, stitching, whole cases."""
