"""What a checkpoint is worth: identity, prompt consistency, what stays the prior's, the gate, and the report.

Models, pictures and person masks come in as callables, so this package knows neither the network that draws nor the
segmenter that finds people, and the same numbers can be taken of any generator.
"""
