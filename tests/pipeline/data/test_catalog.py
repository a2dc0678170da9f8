"""The catalogue costs nothing to import, and its options refuse nonsense in the house's words."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from pipeline.data.catalog import DATASETS
from pipeline.data.options import ImageFolderOptions


def test_naming_a_data_set_imports_nothing_heavy():
    code = (
        "import sys, pipeline.data.catalog; "
        "print([m for m in ('torch', 'sklearn', 'PIL', 'webdataset', 'numpy', 'requests') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_entry_has_its_module_and_its_own_name(name):
    entry = DATASETS[name]
    module = entry._module()
    needed = ("fetch", "write_shards") if name == "published-shards" else ("fetch", "load_samples", "load_class_names")
    assert all(callable(getattr(module, f)) for f in needed)
    assert entry.options.model_fields["name"].annotation.__args__ == (name,)
    assert entry.source
    assert entry.licence


def test_fractions_must_leave_something_to_train_on():
    with pytest.raises(ValidationError, match="with val_frac leaves nothing to train on"):
        ImageFolderOptions(name="image-folder", path=".", img_size=32, val_frac=0.5, test_frac=0.5, seed=0)
