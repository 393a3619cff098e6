"""The public names of `import router_trio`, also for `dir` and `help`, which know nothing of lazy imports."""

from __future__ import annotations

import pydoc

import router_trio
from router_trio.errors import PublishError
from router_trio.protocol.headers import Headers


def test_dir_lists_the_public_names_and_hides_the_lazy_imports() -> None:
    names = dir(router_trio)
    assert set(router_trio.__all__) <= set(names)
    assert [name for name in names if not name.startswith("__")] == sorted(router_trio.__all__)
    assert all(getattr(router_trio, name) is not None for name in names)


def test_help_describes_the_package_and_shows_each_public_class() -> None:
    text = pydoc.plain(pydoc.render_doc(router_trio))
    assert "Router.open()" in text
    assert [name for name in router_trio.__all__ if f"    class {name}(" not in text] == []
    assert "TYPE_CHECKING =" not in text
    assert "_HOMES" not in text


def test_types_used_by_handlers_and_publishers_are_exported() -> None:
    assert router_trio.Headers is Headers
    assert router_trio.PublishError is PublishError
