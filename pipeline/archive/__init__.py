"""Archives: what is there, and each usable volume as NIfTI."""
