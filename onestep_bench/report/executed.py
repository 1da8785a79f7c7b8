"""Executed notebooks as pages to read: code, prose and outputs, without a kernel, a server or a script.

Outputs are cleaned of what could run: a notebook may come from anywhere. A page is made again only when its notebook,
or how pages look, has changed.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import jinja2

from onestep_bench.errors import OnestepError
from onestep_bench.scoring.rows import MIME
from onestep_bench.store.files import write_text

WEB = Path(__file__).parent / "web"
_TAGS = {"br", "div", "dd", "del", "dl", "dt", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "img", "p", "pre", "span"}
_TAGS |= {"sub", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "u"}
_MARK = '<meta name="onestep-source" content="'


def as_pages(notebooks: Iterable[Path], folder: Path) -> dict[Path, Path]:
    """Write each notebook as `folder`/NAME.html, and remove pages of notebooks that are gone; by notebook, its page.

    Empty where nbconvert is not installed, as it is with the extras `grid` and `lab`.
    """
    if not find_spec("nbconvert"):
        return {}
    pages = {path: folder / f"{path.stem}.html" for path in notebooks}
    looks = b"".join(file.read_bytes() for file in (WEB / "notebook.html", WEB / "notebook.css", Path(__file__)))
    for path, page in pages.items():
        mark = hashlib.sha256(path.read_bytes() + looks).hexdigest()
        if _mark_of(page) != mark:
            write_text(page, _page(path, mark))
    for page in folder.glob("*.html"):
        if page not in pages.values() and _mark_of(page):
            page.unlink()
    return pages


def _mark_of(page: Path) -> str:
    """What a page says of the notebook that it was made of; '' of a page that is not ours, or of none."""
    if not page.exists():
        return ""
    with page.open(encoding="utf-8") as file:
        head = file.read(600)
    found = re.search(re.escape(_MARK) + "([0-9a-f]{64})", head)
    return found[1] if found else ""


def _page(path: Path, mark: str) -> str:
    import nbformat
    from nbconvert.exporters import HTMLExporter

    exporter = HTMLExporter(template_name="basic", sanitize_html=True)
    exporter.register_filter("clean_html", _cleaned)
    try:
        notebook = _whole(path.read_text(encoding="utf-8"))
        # The record is for reports; beside it stands a table for people.
        for cell in (cell for cell in notebook.cells if "outputs" in cell):
            cell.update({"outputs": [output for output in map(_shown, cell["outputs"]) if output]})
        body, _ = exporter.from_notebook_node(notebook)
        body.encode()  # JSON can spell half a character, which no page could hold
    except (ValueError, nbformat.ValidationError) as error:
        why = str(error).partition("\n")[0]
        raise OnestepError(f"{path} is no whole notebook ({why}); execute it again, or move it away") from error
    template = environment().get_template("notebook.html")
    return template.render(title=path.stem, mark=mark, body=body)


def _whole(text: str):
    """A notebook of format 4. Raises ValueError or a ValidationError for anything else, on which nbformat may choke."""
    import nbformat

    plain = json.loads(text)
    if not isinstance(plain, dict) or plain.get("nbformat") != 4 or type(plain.get("nbformat_minor")) is not int:
        raise ValueError("not of nbformat 4")
    if not isinstance(plain.get("cells"), list) or not all(isinstance(cell, dict) for cell in plain["cells"]):
        raise ValueError("no list of cells")
    nbformat.validate(plain)
    return nbformat.reads(text, as_version=4)


def _shown(output: dict) -> dict | None:
    """An output without the record of scores; None where there is nothing beside it."""
    data = output.get("data")
    return output if data is None or data.pop(MIME, None) is None or data else None


def _cleaned(markup: str | bytes) -> str:
    """HTML without anything that could run or load: the tags of prose, tables and pictures. nbconvert's own list
    lacks paragraphs and headings."""
    import bleach
    from bleach.css_sanitizer import CSSSanitizer

    return bleach.clean(
        markup.decode() if isinstance(markup, bytes) else str(markup),
        tags=bleach.ALLOWED_TAGS | _TAGS,
        attributes=_may_stand,
        protocols=["http", "https", "data"],
        css_sanitizer=CSSSanitizer(),
    )


def _may_stand(tag: str, name: str, value: str) -> bool:
    """Whether an attribute stays: pictures are those in the page, links lead to other pages or places in this one."""
    if (tag, name) == ("img", "src"):
        return value.startswith("data:image/")
    if (tag, name) == ("a", "href"):
        return not value.startswith("data:")
    return name in ("class", "id", "alt", "width", "height", "title")


def environment() -> jinja2.Environment:
    """What fills in the templates of `web`: all that it is given is escaped, unless a template says `safe`."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(WEB), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
