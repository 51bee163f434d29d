"""What the tests need and are not: small checkpoints, reference values, a hub on loopback, child processes."""
