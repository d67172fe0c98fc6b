"""The paper's claims, measured: `python -m tests.benchmarks.claims` trains every arm and writes evaluation/CLAIMS.md."""
