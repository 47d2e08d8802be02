"""Evaluation of recordings: the pipeline's estimates against the truth, reports and plots."""
