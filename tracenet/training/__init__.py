"""Training: samples, windows around clicks, losses and loops."""
