"""Training beside its peers on one machine: `python -m benchmarks.train --help`."""
