"""What `import router_trio` gives: the public names, also to `dir` and `help`, which know of nothing lazy."""

from __future__ import annotations

import pydoc

import router_trio
from router_trio.errors import PublishError
from router_trio.protocol.headers import Headers


def test_dir_has_the_public_names_and_nothing_of_how_they_are_imported() -> None:
    names = dir(router_trio)
    assert set(router_trio.__all__) <= set(names)
    assert [name for name in names if not name.startswith("__")] == sorted(router_trio.__all__)
    assert all(getattr(router_trio, name) is not None for name in names)


def test_help_says_what_the_package_is_and_shows_each_public_class() -> None:
    text = pydoc.plain(pydoc.render_doc(router_trio))
    assert "Router.open()" in text
    assert [name for name in router_trio.__all__ if f"    class {name}(" not in text] == []
    assert "TYPE_CHECKING =" not in text
    assert "_HOMES" not in text


def test_what_handlers_and_publishers_name_is_exported() -> None:
    assert router_trio.Headers is Headers
    assert router_trio.PublishError is PublishError
