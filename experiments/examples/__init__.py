"""Short programs to copy from; each runs alone, most of them in a minute."""
