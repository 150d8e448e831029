"""Training of the classifiers that are explained: small ones for the embedded scenes, full-size ones for real data."""
