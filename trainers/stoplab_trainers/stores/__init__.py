"""Where checkpoints lie: one contract, kept by a folder and by an object store."""
