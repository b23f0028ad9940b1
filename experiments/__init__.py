"""One absl binary per experiment of the papers, and what they share."""
