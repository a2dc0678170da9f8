"""Published files over HTTPS: resumable, checked by sha256, with a progress bar."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import requests
from tqdm import tqdm

from pipeline.data.addresses import CheckedSession
from pipeline.data.hashes import hash_file
from pipeline.errors import UserError

CHUNK_BYTES = 1 << 16  # what a broken connection loses at most
TIMEOUT_S = (10, 60)  # to connect, and between two pieces of the answer


@dataclass(frozen=True)
class RemoteFile:
    """One file of a data set as it was published."""

    name: str
    num_bytes: int
    sha256: str


def fetch_files(url: str, files: tuple[RemoteFile, ...], directory: Path) -> None:
    """Download `files` from the folder `url` into the existing `directory`; what is there already is kept.

    A file is NAME.part until it is complete and its sha256 right. Called again after an interruption, the download
    goes on where it stopped.

    Raises:
        UserError: if the disk is too small, the server unreachable or inside this network, or a file not the
            published one.
    """
    missing = [file for file in files if not _is_complete(directory / file.name, file)]
    _check_space(directory, sum(file.num_bytes - _size(_part(directory, file)) for file in missing))
    for file in missing:
        _fetch_file(f"{url.rstrip('/')}/{file.name}", file, directory)


def _fetch_file(url: str, file: RemoteFile, directory: Path) -> None:
    part = _part(directory, file)
    if _size(part) > file.num_bytes:
        part.unlink()
    if _size(part) < file.num_bytes:
        try:
            _receive(url, file, part)
        except requests.RequestException as error:
            reason = f"{type(error).__name__}; is the network up? run the same again, it goes on from here"
            raise UserError(f"{url}: cannot be fetched: {reason}") from error
    found = hash_file(part)
    if found != file.sha256:
        part.unlink()
        raise UserError(f"{url}: sha256 is {found}, not the published {file.sha256}; choose another `dataset.url`")
    part.replace(directory / file.name)


def _receive(url: str, file: RemoteFile, part: Path) -> None:
    """Append to `part` what it lacks, or begin anew where the server cannot send a part."""
    done = _size(part)
    # The bytes as they are stored: a transparently unpacked answer would have another length and another hash.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with (
        CheckedSession() as session,
        session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response,
    ):
        if response.status_code not in (200, 206):
            answer = f"{response.status_code} {response.reason}"
            raise UserError(f"{url}: the server answers {answer}; see `dataset.url` for another")
        done = done if response.status_code == 206 else 0
        total = done + int(response.headers.get("Content-Length", file.num_bytes - done))
        if total != file.num_bytes:
            raise UserError(f"{url}: has {total} bytes, the published file {file.num_bytes}; try another `dataset.url`")
        with (
            part.open("ab" if done else "wb") as out,
            tqdm(desc=file.name, total=total, initial=done, unit="B", unit_scale=True, disable=None) as progress,
        ):
            for chunk in response.iter_content(CHUNK_BYTES):
                if out.tell() + len(chunk) > file.num_bytes:  # an answer without a length may have no end
                    raise UserError(f"{url}: sends more than the {file.num_bytes} bytes of the published file")
                out.write(chunk)
                progress.update(len(chunk))


def _check_space(directory: Path, wanted: int) -> None:
    free = shutil.disk_usage(directory).free
    if wanted > free:
        sizes = f"{wanted / 1e6:.1f} MB to download, {free / 1e6:.1f} MB free"
        raise UserError(f"{directory.parent}: not enough disk space: {sizes}; free some and run the same again")


def _is_complete(path: Path, file: RemoteFile) -> bool:
    return path.is_file() and hash_file(path) == file.sha256


def _part(directory: Path, file: RemoteFile) -> Path:
    return directory / f"{file.name}.part"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
