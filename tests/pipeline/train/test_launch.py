"""A Ray address that nobody answers is refused at once."""

import socket

import pytest

from pipeline.config import Placement
from pipeline.errors import UserError
from pipeline.train.launch import check_address, ray_session


def test_nobody_at_the_address_is_one_sentence() -> None:
    said = r"placement\.ray_address = '127\.0\.0\.1:1': no Ray runtime there .*; start"
    with pytest.raises(UserError, match=said), ray_session(Placement(ray_address="127.0.0.1:1")):
        pass


def test_what_listens_or_is_not_an_address_is_left_to_ray() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        check_address(f"127.0.0.1:{port}")
        check_address(f"ray://127.0.0.1:{port}")
    check_address("local")
    check_address("auto")
