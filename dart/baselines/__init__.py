"""Other ways to spend a token budget, on the same backbones: what DART is compared with besides the uniform grid.

At the input: `scores` that nothing learned, `quadtree` and `deformable` regions. Inside the backbone, what takes tokens
away between its blocks: `build.build_reducer` knows ToMe, EViT, DynamicViT and ATS.
"""
