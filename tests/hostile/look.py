"""Look at every bad picture in a process whose memory is limited: python -m tests.hostile.look."""

import json
import resource

from pipeline.data.pictures import check_picture
from tests.hostile.corpus import bad_pictures


def main() -> None:
    pictures = bad_pictures()  # making the bombs takes more than looking at them may
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reasons = {name: check_picture(data) for name, data in pictures.items()}
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"reasons": reasons, "grown_mib": grown_mib}))


if __name__ == "__main__":
    main()
