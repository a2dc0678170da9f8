"""Other ways to spend a token budget, on the same backbone.

Here: what takes tokens away inside it (`build.build_reducer`): ToMe, EViT, DynamicViT and ATS. The uniform grid, with
which everything is compared, is a tokenizer without a scorer (`dart.tokenizer`).
"""
