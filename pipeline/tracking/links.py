"""From the report page to the pages of its runs on an MLflow server."""

import sys
from collections.abc import Iterable

from pipeline.tracking.mirror import open_ledger
from pipeline.tracking.uri import brief, page_root


def run_links(uri: str, suites: Iterable[str]) -> dict[str, str]:
    """{SUITE/STAGE/FINGERPRINT: the run's page}. A database of this machine has no pages, and is not asked.

    A server that does not answer costs the links, and one line that says so: the report is of the recorded runs alone.
    """
    links: dict[str, str] = {}
    root = page_root(uri)
    if root is None:
        return links
    try:
        for suite in suites:
            links |= open_ledger(uri, suite).addresses()
    except Exception as error:  # whatever a server does, there is a report
        print(f"warning: no links to MLflow on the page ({brief(error).replace(uri, root)})", file=sys.stderr)
    return links
