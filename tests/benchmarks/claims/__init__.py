"""The paper's claims, measured: `python -m tests.benchmarks.claims` trains each arm, writes evaluation/CLAIMS.md."""
