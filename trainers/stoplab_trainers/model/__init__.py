"""The model: encoder, positions, predictor, and the two arms built from them."""
