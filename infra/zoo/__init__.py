"""The demo's model zoo: tiny models of the production classes, the recipes that train them, and their shipped weights."""
