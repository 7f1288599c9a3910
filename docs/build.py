"""`make docs`: the API reference from the docstrings, with the notebooks beside it, in build/docs.

A warning of pdoc, such as a name that cannot be resolved, is an error.
"""

import shutil
import sys
import warnings
from pathlib import Path

import nbconvert
import pdoc

import jaxkd

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "docs"


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
    """Every notebook as HTML, as it was saved; {title: path below OUT}."""
    folder.mkdir()
    exporter, pages = nbconvert.HTMLExporter(embed_images=True), {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        body, _ = exporter.from_filename(str(path))
        target = folder / f"{path.stem}.html"
        target.write_text(body, encoding="utf-8")
        pages[path.stem.replace("_", " ")] = target.relative_to(OUT).as_posix()
    return pages


def reference(pages: dict[str, str]) -> None:
    """A page a module, without the command line's; the first page is the README's."""
    links = "".join(f'<li><a href="{path}">{title}</a></li>' for title, path in pages.items())
    templates = OUT / ".templates"
    templates.mkdir()
    (templates / "module.html.jinja2").write_text(
        '{% extends "default/module.html.jinja2" %}{% block nav_footer %}'
        f"<h2>Notebooks</h2><ul>{links}</ul>"
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
