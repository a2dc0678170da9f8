"""Vision Mamba (arXiv 2401.09417), plain or behind a region tokenizer: `vim_*`, `dart_vim_*`, `uniform_vim_*`.

`dart.models.entrypoints` registers its sizes with timm.
"""

from dart.models.state_space import StateSpaceModel


class VisionMamba(StateSpaceModel):
    """Images to classes: the class token in the middle of the tokens, the mean of both directions.

    The token in the middle is as far from the first token as from the last, and a scan forgets with distance.
    """

    average_directions = True

    @staticmethod
    def class_index(num_patches: int) -> int:
        """In the middle; after the first half where the number is odd."""
        return num_patches // 2
