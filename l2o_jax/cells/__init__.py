"""Cells, the papers' and others: what a learned optimizer computes."""
