"""JSON Schema (https://json-schema.org), drafts 2020-12 and 7, for the bodies of messages.

A schema file is checked and compiled to closures once (`schema.Schema`). Each message's decoded body is validated with
these, within a budget. Pure and synchronous; no text is ever executed as Python, nothing is ever fetched.

- `schema`: a compiled schema, and the error for a body that does not fit
- `reading`: from a file to a checked document; `references`: the targets of `$ref`, without a network
- `compiler`: from the document to closures; `keywords` has the closure of each keyword
- `values`: equality of JSON values; `misses`: where a body does not fit, and which rule it breaks
"""
