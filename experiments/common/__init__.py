"""What the experiments share; none of these files can be run."""
