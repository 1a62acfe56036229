"""Images from shards to batches: found, indexed, planned, decoded, cropped."""
