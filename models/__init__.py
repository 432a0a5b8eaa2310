"""The generator: linear DiT, solver, text encoder, autoencoder, checkpoints, the shapes world and training."""
