"""The recipe of the embedded pair: shapes, batches, the training loop, the accuracy reached."""
