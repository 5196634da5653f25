"""Which checkpoint, in which precision, whether it fits, and where its files are."""
