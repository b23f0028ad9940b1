"""Families of functions to be minimized, one file each."""
