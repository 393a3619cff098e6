"""The file with the JSON Schema of a route: its path in a configuration, and its content as it was read with it.

The content is part of the settings. So a reload finds a changed file, and all workers have the same schema.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import CoreSchema, core_schema

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue

    from router_trio.schemas.schema import Schema

MISSING = "a schema needs RE2 and the meta-schemas: pip install google-re2 jsonschema-specifications"
DIGITS = 12
"""Hexadecimal digits of the digest that stands for a content."""


@dataclass(frozen=True, slots=True)
class SchemaFile:
    """A schema file that was read and checked."""

    path: str = field(compare=False)
    content: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """The name of the file, without its folder."""
        return Path(self.path).name

    def __str__(self) -> str:
        return f"{self.name} (sha256 {sha256(self.content).hexdigest()[:DIGITS]})"

    @property
    def schema(self) -> Schema:
        """The compiled schema."""
        from router_trio.schemas.schema import schema_of  # here, because most routes have no schema

        return schema_of(self.content)

    @classmethod
    def read(cls, value: object) -> SchemaFile:
        """Read and check the file at a path. Blocks. Raises ValueError with what is wrong, and the cure."""
        if isinstance(value, SchemaFile):
            return value
        if not isinstance(value, str | Path) or not str(value):
            raise ValueError("must be the path of a file, in quotes")
        try:
            from router_trio.schemas.reading import MAX_FILE

            found = cls(str(value), _content(Path(value), MAX_FILE + 1))
            _ = found.schema
        except ImportError:
            raise ValueError(MISSING) from None
        except OSError as error:
            raise ValueError(f"{str(value)!r} can't be read ({error.strerror}); correct the path") from None
        except _Unreadable as error:
            raise ValueError(str(error)) from None
        except ValueError as error:
            text = str(error)
            raise ValueError(f"{str(value)!r}{', ' if text.startswith('at ') else ' '}{text}") from None
        return found

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.read, serialization=core_schema.plain_serializer_function_ser_schema(str, when_used="json")
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "format": "path"}


class _Unreadable(Exception):
    """There is no such file. The text has the cure."""


def _content(path: Path, most: int) -> bytes:
    if not path.is_file():
        raise _Unreadable(f"there is no file {str(path)!r}; create it or correct the path")
    with path.open("rb") as file:
        return file.read(most)
