"""Networks: tensors in, logits out, and nothing else."""
