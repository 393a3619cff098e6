"""The JSON Schema of the configuration file, for editors and for `router-trio schema`."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from router_trio.settings.settings import Settings


class _FileSchema(GenerateJsonSchema):
    """pydantic's schema without what a TOML file does not have: null, and titles that only repeat the key."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        if schema.get("default", ...) is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def file_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the TOML file: every key with description, default and form."""
    schema = Settings.model_json_schema(by_alias=True, schema_generator=_FileSchema)
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        **schema,
        "title": "Configuration of router-trio",
        "description": "router.toml: connections to NATS and the routes between them.",
    }
