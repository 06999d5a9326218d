"""`python -m benchmarks.fidelity`: see `bench`."""

from benchmarks.fidelity.bench import main

main()
