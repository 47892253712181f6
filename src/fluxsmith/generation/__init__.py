"""One sampler for all models."""
