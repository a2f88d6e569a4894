"""Models of other programs as model folders of ours: nnU-Net v2, MONAI bundles."""
