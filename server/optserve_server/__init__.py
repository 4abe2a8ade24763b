"""The optserve server: learned optimizers served over HTTP, meta-trained in the background, kept in SQL."""
