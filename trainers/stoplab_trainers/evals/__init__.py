"""Evaluations of a frozen encoder: one protocol a file, `suite` runs them."""
