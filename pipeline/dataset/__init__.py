"""Data sets: layout, folds, fingerprint, plan and the store of preprocessed cases."""
