"""Evaluation: scores per case and class, and the report."""
