"""Short programs to copy from; each runs alone and says how long it takes."""
