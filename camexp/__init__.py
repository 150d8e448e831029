"""camexp: a benchmark harness for visual explanations of convolutional networks."""

__version__ = "0.1.0"
