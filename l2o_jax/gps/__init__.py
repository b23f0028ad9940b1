"""Guided policy search, small and convolutional (Li & Malik 2016, 2017)."""
