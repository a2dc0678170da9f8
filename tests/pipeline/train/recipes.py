"""Everything that an augmentation can do, at once."""

from pipeline.recipe import AugmentConfig

FULL = AugmentConfig(
    scale=[0.5, 1.0], hflip=0.5, interpolation="bicubic", auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.0,
    reprob=0.25, aug_repeats=3, mixup=0.8, cutmix=1.0, crop_pct=0.875,
    mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225],
)  # fmt: skip
