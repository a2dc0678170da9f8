"""Paper mode: the method exactly as its authors' code computes it, row-end wrap and batch statistics included."""

from dart.paper.tokenizer import PaperTokenization, PaperTokenizer

__all__ = ["PaperTokenization", "PaperTokenizer"]
