"""Takes the cards into the site: in the repository they lie beside docs/, in the site below it.

Links from page to page follow. What else a page links to is in the repository alone: there only the words stay.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(\.\./([^)\s]*)\)")


def on_files(files, config):
    for path in sorted([*ROOT.glob("cards/*.md"), *ROOT.glob("cards/*.svg")]):
        files.append(File.generated(config, f"cards/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, **_):
    inside, outside = ("docs/", "../") if page.file.src_uri.startswith("cards/") else ("cards/", "cards/")

    def follow(link):
        words, to = link.groups()
        if not to.startswith(inside):
            return words
        return f"[{words}]({outside}{to.removeprefix(inside)})"

    return LINK.sub(follow, markdown)
