"""Fetching the papers' data sets and checkpoints; nothing here touches the network unless scripts/download.py runs."""
