"""Paperfolk as a source: a folder in FFHQ's format under a name of its own.

Drawn photos have the file names of FFHQ's: taken for FFHQ, they would keep the real ones out.
"""

from preprocessing.sources.ffhq import FFHQ


class Paperfolk(FFHQ):
    """A folder that `paperfolk.write_ffhq` wrote."""

    name = "paperfolk"
    terms = "Paperfolk is drawn by a program and is in the public domain (CC0 1.0)."
