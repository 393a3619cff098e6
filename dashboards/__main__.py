"""`python -m dashboards`: write the JSON of every dashboard, and the page that describes them."""

from __future__ import annotations

from dashboards import document
from dashboards.boards import boards, path_of
from dashboards.frame import encode


def main() -> None:
    """Write the JSON files and the page, and print their paths."""
    built = boards()
    for name, board in built.items():
        path_of(name).write_text(encode(board), encoding="utf-8")
        print(path_of(name))
    document.PATH.write_text(document.page(built), encoding="utf-8")
    print(document.PATH)


if __name__ == "__main__":
    main()
