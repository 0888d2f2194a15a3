"""Parts that GraphEncoder's encoders are made of."""
