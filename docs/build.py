"""`make docs`: the API reference from the docstrings, with the notebooks beside it, in build/docs.

A warning of pdoc, such as a name that cannot be resolved, is an error.
"""

import shutil
import sys
import warnings
from pathlib import Path

import nbconvert
import nbformat
import pdoc
from nbformat.v4 import new_markdown_cell, new_notebook

import jaxkd

ROOT = Path(__file__).resolve().parents[1]
OUT, NOTEBOOKS = ROOT / "build" / "docs", ROOT / "notebooks"


def main() -> int:
    """Writes index.html, a page a module and a page a notebook; returns the exit code."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    pages = notebooks(OUT / "notebooks")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reference(pages)
    written = sum(1 for _ in OUT.rglob("*.html"))
    print(f"{written} pages of jaxkd {jaxkd.__version__}: {OUT / 'index.html'}")
    return 0


def notebooks(folder: Path) -> dict[str, str]:
    """The guide and every notebook as HTML, as it was saved; {title: path below OUT}."""
    folder.mkdir()
    exporter, pages = nbconvert.HTMLExporter(embed_images=True), {}
    text = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    guide = new_notebook(cells=[new_markdown_cell(text)], metadata={"title": "Guide"})
    saved = {path.stem: nbformat.read(path, 4) for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    for name, notebook in {"guide": guide, **saved}.items():
        notebook.metadata.setdefault("title", name.replace("_", " "))
        body, _ = exporter.from_notebook_node(notebook)
        target = folder / f"{name}.html"
        target.write_text(body, encoding="utf-8")
        pages[name.replace("_", " ")] = target.relative_to(OUT).as_posix()
    return pages


def reference(pages: dict[str, str]) -> None:
    """A page a module, without the command line's, with links to the other `pages`."""
    links = "".join(f'<li><a href="{path}">{title}</a></li>' for title, path in pages.items())
    templates = OUT / ".templates"
    templates.mkdir()
    (templates / "module.html.jinja2").write_text(
        '{% extends "default/module.html.jinja2" %}{% block nav_title %}'
        f"<h2>Guide and notebooks</h2><ul>{links}</ul>"
        "{{ super() }}{% endblock %}".replace(
            'href="', 'href="{{ ("../" * module.modulename.count(".")) }}'
        )
    )
    pdoc.render.configure(
        docformat="google",
        search=True,
        show_source=True,
        template_directory=templates,
        footer_text=f"jaxkd {jaxkd.__version__}",
    )
    pdoc.pdoc("jaxkd", "!jaxkd.cli", output_directory=OUT)
    shutil.rmtree(templates)


if __name__ == "__main__":
    sys.exit(main())
