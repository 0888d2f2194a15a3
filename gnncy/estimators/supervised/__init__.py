"""Parts of the training with labels: what they say, what is minimised, and on which minibatches."""
