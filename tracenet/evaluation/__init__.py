"""Evaluation: how good one click is."""
