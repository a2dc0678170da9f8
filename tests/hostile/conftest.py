"""The tiny data set and the web server of the data's own tests."""

from tests.pipeline.data.conftest import digits_raw, server, tiny_shards

__all__ = ["digits_raw", "server", "tiny_shards"]
