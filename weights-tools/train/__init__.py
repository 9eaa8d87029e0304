"""Training of the demo models; see README.md."""
