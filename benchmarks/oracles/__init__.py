"""What benchmarks and tests share: tiny models, oracles that share no code with the package, cases and their judges."""
