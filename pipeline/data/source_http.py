"""Reading over http what a stranger's server sends: no more than was asked for, and from nowhere inside."""

from typing import Any
from urllib.parse import urljoin

import aiohttp
from fsspec.implementations.http import HTTPFileSystem

from pipeline.data.addresses import check_url, shown
from pipeline.errors import UserError, problem

TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)


class BoundedHttp(HTTPFileSystem):
    """fsspec's, which reads no more of an answer than was asked for, and one byte: what says more is refused."""

    async def _cat_file(self, url: str, start: int = 0, end: int = 0, **options: Any) -> bytes:
        if end <= start:
            return b""
        # As they are stored: unpacked on the way, a few bytes could become many, and not those of the range.
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        session = await self.set_session()
        async with session.get(self.encode_url(url), headers=headers) as response:
            if response.status == 416:
                return b""  # it ends before
            self._raise_not_found_for_status(response, url)
            found = bytearray()
            async for piece in response.content.iter_chunked(2**16):
                found += piece
                if len(found) > end - start:
                    rule = f"the server sends more than the {end - start} bytes that were asked for"
                    raise UserError(problem("url", shown(url), rule, "copy the shards to another"))
            return bytes(found)


async def checked_client(**kwargs: Any) -> aiohttp.ClientSession:
    """A session that follows no redirect to where `check_url` refuses to go, and wants parts, not the whole."""
    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_check_redirect)
    trace.on_request_end.append(_check_part)
    return aiohttp.ClientSession(trace_configs=[trace], trust_env=True, timeout=TIMEOUT, **kwargs)


async def _check_redirect(session: Any, context: Any, params: aiohttp.TraceRequestRedirectParams) -> None:
    check_url(urljoin(str(params.url), params.response.headers.get("Location", "")))


async def _check_part(session: Any, context: Any, params: aiohttp.TraceRequestEndParams) -> None:
    if "Range" in params.headers and params.response.status == 200:
        params.response.close()  # else the whole shard would be received for each of its samples
        rule = "the server does not know ranges, it sends whole files"
        raise UserError(problem("url", shown(str(params.url)), rule, "copy the shards to another"))
