"""Short programs to copy from; each runs alone in half a minute."""
