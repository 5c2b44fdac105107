"""Execute every page anew from the published tables and compare what it says with book/executed.

Run in the repository, with its `tests` folder among Python's paths and without torch.
"""

import difflib
import sys
import tempfile
from pathlib import Path

from books import shown

from iumad.report.book import republish

LINES = 10  # of the differences of a page

if __name__ == "__main__":
    different = []
    with tempfile.TemporaryDirectory() as folder:
        pages = republish(Path(folder))
        for page in pages:
            published, anew = (
                "\n".join(shown(path)).splitlines()
                for path in (Path("book/executed") / page.name, page)
            )
            if published != anew:
                different.append(page.stem)
                lines = difflib.unified_diff(published, anew, page.stem, "executed anew", n=0)
                print(*[line.rstrip() for line in lines][:LINES], sep="\n")
    print(f"{len(pages)} pages, {len(different)} say something else: {', '.join(different) or '-'}")
    sys.exit(bool(different))
