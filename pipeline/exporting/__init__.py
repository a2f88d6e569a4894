"""Model folders for elsewhere: MONAI bundle, torch.export, TorchScript, ONNX."""
