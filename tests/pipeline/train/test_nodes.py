"""Nodes that see other files or run other code are named before anything starts, all of it at once."""

from pathlib import Path

from pipeline.train.nodes import Node, check_nodes, compare, find_unread, here_and_now, look_around

HERE = {"versions": {"python": "3.11.7", "torch": "2.13.0"}, "code": "a" * 64,
        "files": {"/shared/manifest.json": "c" * 64}, "free_bytes": 10**11}  # fmt: skip


def node(**found: object) -> Node:
    return Node("0123456789", "10.0.0.7", 4.0, {**HERE, "storage": None, "gpus": 4, **found})


def test_a_node_like_this_one_has_no_problems() -> None:
    assert compare(node(), HERE, Path("/shared")) == []
    assert compare(node(gpus=None), HERE, Path("/shared")) == []  # nobody can say: no news


def test_everything_that_differs_is_named_at_once() -> None:
    wrong = node(
        versions={"python": "3.12.1"}, code="d" * 64, files={"/shared/manifest.json": "none"},
        free_bytes=10**8, gpus=3, storage="Read-only file system",
    )  # fmt: skip
    said = compare(wrong, HERE, Path("/shared"))
    expected = [
        "storage = '/shared': cannot be written there (Read-only file system); mount the same folder at the same path",
        "storage = '/shared/manifest.json': not there; mount the same folder at the same path",
        "code = 'dddddddddddd': here it is aaaaaaaaaaaa; take its installed copy away",
        "python = '3.12.1': here it is 3.11.7; install requirements.lock there",
        "torch = 'none': here it is 2.13.0; install requirements.lock there",
        "free disk space = '0.1 GB': less than 1.0 GB on its own disk; free some",
        "GPUs that work = 3: Ray counts 4 there; see nvidia-smi, start the node again",
    ]
    assert said == [f"node 10.0.0.7 (012345): {line}" for line in expected]


def test_a_node_that_does_not_answer_is_named() -> None:
    silent, failing = (compare(node()._replace(found=found), HERE, Path()) for found in (None, "No module named x"))
    assert silent == ["node 10.0.0.7 (012345) = 'no answer': it does not run tasks; see its logs, or take it out"]
    assert failing == ["node 10.0.0.7 (012345) = 'No module named x': it does not run tasks; "
                       "see its logs, or take it out"]  # fmt: skip


def test_what_others_wrote_is_read_back(tmp_path: Path) -> None:
    assert look_around("first", tmp_path, [])["storage"] is None
    (tmp_path / "second").write_text("something else")
    assert find_unread("me", tmp_path, ["first", "second", "third"]) == ["second", "third"]
    assert look_around("first", tmp_path / "nowhere", [])["storage"] == "No such file or directory"


def test_sound_nodes_pass_and_nothing_stays(ray: None, tmp_path: Path) -> None:
    import ray as cluster

    (tmp_path / "manifest.json").write_text("{}")
    before = cluster.available_resources()["CPU"]
    check_nodes(tmp_path, [tmp_path / "manifest.json"], answer_s=60)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    assert cluster.available_resources()["CPU"] == before


def test_a_node_is_compared_with_this_process() -> None:
    found = {**here_and_now([]), "storage": None, "gpus": 0}
    assert compare(Node("0" * 8, "10.0.0.7", 0, found), here_and_now([]), Path(), need_bytes=0) == []
