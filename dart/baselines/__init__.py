"""Other ways to spend a token budget, on the same backbones: what DART is compared with besides the uniform grid."""
