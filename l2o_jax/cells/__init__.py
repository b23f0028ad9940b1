"""The papers' cells: what a learned optimizer computes."""
