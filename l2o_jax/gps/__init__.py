"""Guided policy search, small and convolutional (Li & Malik 2016, 2017).

A guide psi is a linear-Gaussian controller that LQR improves; a policy pi, the
learned optimizer, learns what guides do.  What a guide acts on is a unit: one
coordinate of a group ("convolutional", 2017), or all coordinates of a function
("joint", 2016).

Shape letters beside those of base.py:
  P  functions with a guide of their own (1: one for all)
  M  coordinate groups
  N  rollouts of each of the P
  J  coordinates of a group that are looked at in a rollout
  A  actions of a unit: 1, or n for joint guides
  S  samples of a guide: N · J units, or N for joint guides
Here T are the steps of a rollout, and D is the state size of a UNIT: (x, g, u,
Φ) of its A coordinates, feature-major.
"""
