"""DART: Differentiable dynamic Adaptive Region Tokenizer (arXiv 2506.10390), for timm models.

Importing this package imports nothing heavy. `import dart.models` registers the models with timm.
"""

__version__ = "0.1.0"
