"""The demo's model zoo: tiny models of the production classes, their training recipes and their shipped weights."""
